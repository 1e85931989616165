"""Penalty with a hyperparameter of its own: sum log(1 + |z| / epsilon), linearised."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LogSum:
    M: float | None
    epsilon: float

    def proximal(self, x, z, strength):
        for target, last in zip(x, z, strict=True):
            weight = (1 / (last.abs() + self.epsilon)).clamp(max=self.M or torch.inf)
            yield target.sign() * (target.abs() - strength * weight).clamp(min=0)

    def capped(self, z):
        return (1 / (z.abs() + self.epsilon) > (self.M or torch.inf)).sum()

    def __str__(self):
        return f"log-sum, epsilon={self.epsilon:g}"


def build(M, epsilon=0.1):
    return LogSum(M, epsilon)
