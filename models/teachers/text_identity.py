"""What a text teacher computes besides its weights, as a JSON-able value for its fingerprint: tokenizer, architecture.

How a library writes these down changes with its versions, and a fingerprint that changes makes all features stale. So
a tokenizer is known by its vocabulary and by what it makes of a few texts, and an architecture by those settings that
are not its kind's defaults.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

_PROBE: Final = (
    "A Dog runs", "Él vio la MÜNCHNER Straße", "1234567 & 3.14", "don't re-do: (a), [b]; c?!", "犬が 走る。", "собака",
    "🐕‍🦺 👍🏽", "a  b\tc\nd", "<s> [SEP] </s>",
)  # fmt: skip
"""Short, as a model may read few tokens: cases, accents, digits, punctuation, scripts, emoji, spaces, marks."""
_WITHOUT_EFFECT: Final = {
    "architectures", "dtype", "gradient_checkpointing", "id2label", "label2id", "output_attentions",
    "output_hidden_states", "return_dict", "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip


def tokenizer_identity(tokenizer: Any, numbers: Callable[[str], Any]) -> Any:
    """Return a tokenizer's vocabulary, sorted, and the `numbers` that it makes of each text of a few."""
    inner = getattr(tokenizer, "tokenizer", tokenizer)  # open_clip's may hold one of transformers
    get = getattr(inner, "get_vocab", None)
    vocabulary = get() if callable(get) else getattr(inner, "encoder", None)
    held = sorted(vocabulary.items()) if isinstance(vocabulary, dict) else vocabulary
    return [held, [numbers(text) for text in _PROBE]]


def module_identity(module: nn.Module) -> Any:
    """Return the type and settings of a model's module; of a network of transformers those that are not defaults."""
    network = next((part for part in module.modules() if isinstance(part, PreTrainedModel)), None)
    if network is None:
        settings = getattr(module, "get_config_dict", dict)
        return [type(module).__name__, _lasting(settings())]
    config: PretrainedConfig = network.config
    try:
        usual = _lasting(type(config)().to_dict())
    except Exception:  # some kinds have no defaults, and what they raise has no common base
        usual = {}
    given = _lasting(config.to_dict())
    return [type(network).__name__, {key: value for key, value in given.items() if value != usual.get(key)}]


def _lasting(value: Any) -> Any:
    """Return settings without what varies by library, place and use, as JSON has them."""
    if isinstance(value, dict):
        return {
            str(key): _lasting(item)
            for key, item in value.items()
            if key not in _WITHOUT_EFFECT and not str(key).startswith("_")
        }
    if isinstance(value, (list, tuple)):
        return [_lasting(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else type(value).__name__
