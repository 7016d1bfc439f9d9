"""Names of the activations: what users write, and what specs and cache keys hold.

Host only: neither torch nor CuTe DSL. Device code is in `cute_activation`, float64-capable references in
`activation_ref`.

| name             | value                                                  | source |
|---|---|---|
| None             | x                                                      | |
| relu             | max(x, 0)                                              | |
| relu_sq          | max(x, 0)^2                                            | Primer, arXiv 2109.08668 |
| gelu_tanh_approx | x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))          | GELU, arXiv 1606.08415 |
| silu             | x sigmoid(x)                                           | arXiv 1702.03118, 1710.05941 |
| tanh             | tanh(x)                                                | |
| sigmoid          | 1 / (1 + exp(-x))                                      | |
| swiglu           | silu(g) u                                              | GLU variants, arXiv 2002.05202 |
| swiglu_oai       | g sigmoid(1.702 g) (u + 1), nothing clamped            | gpt-oss |
| reglu            | relu(g) u                                              | GLU variants |
| geglu            | gelu_tanh_approx(g) u                                  | GLU variants, with the tanh form of GELU |
| glu              | sigmoid(g) u                                           | arXiv 1612.08083 |

gpt-oss also clamps g to at most 7 and u to [-7, 7] beforehand; that is left to the caller.
"""

import enum
from typing import TypeVar, Union

_Kind = TypeVar("_Kind", "Activation", "GatedActivation")


class Activation(enum.Enum):
    """A function of one number. `value` is the public name; the identity's is None."""

    IDENTITY = None
    RELU = "relu"
    RELU_SQ = "relu_sq"
    GELU_TANH_APPROX = "gelu_tanh_approx"
    SILU = "silu"
    TANH = "tanh"
    SIGMOID = "sigmoid"

    @classmethod
    def of(cls, name: Union[str, None, "Activation"]) -> "Activation":
        """The member with this public name, or the member itself. ValueError: names the legal ones."""
        return _parse(cls, name)


class GatedActivation(enum.Enum):
    """A function of a gate g and a linear part u ("up"), in this order. `value` is the public name."""

    SWIGLU = "swiglu"
    SWIGLU_OAI = "swiglu_oai"
    REGLU = "reglu"
    GEGLU = "geglu"
    GLU = "glu"

    @classmethod
    def of(cls, name: Union[str, None, Activation, "GatedActivation"]) -> "GatedActivation":
        """The member with this public name, or the member itself. ValueError for any other: names the legal ones."""
        return _parse(cls, name)


def _parse(kind: type[_Kind], name: object) -> _Kind:
    try:
        return kind(name)
    except ValueError:
        legal = ", ".join(repr(member.value) for member in kind)
        hint = _other_kind(kind, name)
        raise ValueError(f"activation is {name!r}, expected one of {legal}{hint}") from None


def _other_kind(kind: type[_Kind], name: object) -> str:
    """What to say where `name` is an activation, but one of the other kind."""
    if kind is Activation and name in [member.value for member in GatedActivation]:
        return f"; {name!r} is gated and belongs to the gated functions (gemm_gated, gemm_dgated)"
    if kind is GatedActivation and name in [member.value for member in Activation]:
        return f"; {name!r} is not gated and belongs to gemm_act, gemm_dact"
    return ""
