"""torch.func (torch): stacked networks, gradients per sample, tangents, second derivatives are those of a loop."""

import copy
from typing import Any

import torch
from ecosystem.kit import gradients, images, labels, loss, relative, same
from ecosystem.kit import network as made
from torch.func import functional_call, grad, jacrev, jvp, vmap


def test_vmap_over_stacked_networks_is_a_loop(form: str) -> None:
    networks = [made(form, seed) for seed in range(2)]
    network = networks[0]
    names = dict(network.named_parameters()), dict(network.named_buffers())
    states = [dict(net.named_parameters()) | dict(net.named_buffers()) for net in networks]
    parameters, buffers = ({n: torch.stack([s[n] for s in states]) for n in group} for group in names)
    body, batch = copy.deepcopy(network).to("meta"), images()
    logits = vmap(lambda p, b: functional_call(body, (p, b), (batch,)))(parameters, buffers)
    for found, net in zip(logits, networks, strict=True):
        assert relative(found, net(batch)) < 1e-5


def test_gradients_per_sample_are_those_of_a_loop(trainable: Any, plain: Any) -> None:
    net = trainable.eval()
    parameters = dict(net.named_parameters())

    def one(p: Any, image: Any, label: Any) -> Any:
        return loss(functional_call(net, p, (image[None],)), label[None])

    found = vmap(grad(one), (None, 0, 0))(parameters, images(), labels())
    same({name: each.mean(0) for name, each in found.items()}, gradients(plain))


def test_tangents_are_jacobians_times_vectors(network: Any, plain: Any) -> None:
    direction = torch.randn_like(images(2))
    jacobian = jacrev(plain)(images(2))
    expected = torch.einsum("nkmchw,mchw->nk", jacobian, direction)
    assert relative(jvp(network, (images(2),), (direction,))[1], expected) < 1e-4
    with torch.autograd.forward_ad.dual_level():
        dual = network(torch.autograd.forward_ad.make_dual(images(2), direction))
        assert relative(torch.autograd.forward_ad.unpack_dual(dual).tangent, expected) < 1e-4


def test_gradient_penalties_reach_the_weights(trainable: Any, plain: Any) -> None:
    found = []
    for net in (trainable.eval(), plain):
        x = images().requires_grad_()
        (slope,) = torch.autograd.grad(loss(net(x), labels()), x, create_graph=True)
        slope.square().sum().backward()
        found.append({name: p.grad for name, p in net.named_parameters() if p.grad is not None})
    same(found[0], found[1])


def test_checkpointing_under_a_transform(trainable: Any, plain: Any) -> None:
    net, batch = trainable.eval(), images()
    net.set_grad_checkpointing()
    found = grad(lambda p: loss(functional_call(net, p, (batch,)), labels()))(dict(net.named_parameters()))
    same(found, gradients(plain))
