"""Convert timm's resnet18 and do one training step."""

import timm
import torch
from torch.nn import functional as F

import bu2td

model = timm.create_model("resnet18", num_classes=10)
td = bu2td.convert(model, arrangement="td", seed=0)
print(td.plan)

optimizer = torch.optim.SGD(td.parameters(), lr=0.1, momentum=0.9)
images, labels = torch.rand(4, 3, 64, 64), torch.tensor([0, 1, 2, 3])
loss = F.cross_entropy(td(images), labels)
loss.backward()
optimizer.step()
print(f"loss {loss.item():.3f}")
