"""Command line -> settings: what is accepted, and the one sentence that each mistake gets."""
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seglite import config as settings
from seglite.config import UsageError
from tests.seglite.tiny import METHODS, Settings


def parse(*arguments):
    return settings.parse(["method=tiny", *arguments], METHODS)


def test_later_layers_win():
    config, _ = parse()
    assert config.train.steps == 12 and config.size == "toy", "the recipe of the size is applied"
    config, notes = parse("train.steps=5", "seed=3")
    assert config.train.steps == 5 and config.seed == 3
    assert notes == ["train.steps=5 (was 12)", "seed=3 (was 0)"], "every override is reported with what it replaced"


def test_size_follows_the_data():
    assert parse("data=voc", "root=x")[0].size == "small"
    assert parse("data=voc", "root=x", "size=paper")[0].size == "paper"


def test_values_are_converted():
    config, _ = parse("train.lr=1", "train.compile=true", "scenes.q=0.25", "scenes.objects_max=3", "root=/a=b/c", "out=x")
    assert config.train.lr == 1.0 and isinstance(config.train.lr, float), "an integer is accepted for a number"
    assert config.train.compile is True and config.scenes.q == 0.25 and config.scenes.objects_max == 3
    assert config.root == "/a=b/c", "only the first = separates"


@pytest.mark.parametrize(
    "argument, pieces",
    [
        ("train.lrr=1", ["unknown key 'train.lrr'", "Did you mean train.lr"]),
        ("lr=1", ["unknown key 'lr'", "train.lr"]),
        ("train=1", ["train is a group of keys", "train.steps"]),
        ("train.steps=many", ["train.steps wants an integer", "'many'"]),
        ("train.steps=1.5", ["train.steps wants an integer", "'1.5'"]),
        ("train.lr=fast", ["train.lr wants a number", "'fast'"]),
        ("debug=maybe", ["debug wants true or false", "'maybe'"]),
        ("size=tiny", ["size wants one of", "toy, small, paper", "'tiny'"]),
        ("train.optimizer=adamm", ["Did you mean adam"]),
        ("steps", ["expected key=value", "'steps'"]),
        ("--seed=1", ["no dashes", "'seed=1'"]),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_mistakes_are_named(argument, pieces):
    with pytest.raises(UsageError) as caught:
        parse(argument)
    for piece in pieces:
        assert piece in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("argument, least", [("train.batch=0", 1), ("first.steps=-1", 0), ("train.lr=-0.1", 0), ("workers=-2", -1), ("scenes.train_images=0", 1),
                                             ("augment.crop=-8", 0)])
def test_bounds_stand_beside_the_fields(argument, least):
    with pytest.raises(UsageError, match=f"{argument}: it must be at least {least}$"):
        parse(argument)
    key = argument.partition("=")[0]
    assert settings.least_values(Settings)[key] == least
    parse(f"{key}={least}")


def test_a_key_given_twice_is_refused():
    with pytest.raises(UsageError, match="seed is given twice"):
        parse("seed=1", "seed=2")


def test_unknown_method_suggests():
    with pytest.raises(UsageError, match="unknown method 'tinny'.*Did you mean tiny"):
        settings.parse(["method=tinny"], METHODS)


def test_recipes_are_checked_against_the_keys(monkeypatch):
    monkeypatch.setitem(METHODS["tiny"].RECIPES, "toy", {"train.stepps": 1})
    with pytest.raises(KeyError, match="train.stepps"):
        parse()


def test_help_lists_every_key_with_its_documentation():
    text = settings.help_text(METHODS)
    for key, (_, documentation) in settings.leaves(Settings).items():
        assert f"  {key}=" in text, key
        assert documentation and documentation in text, f"{key} has no documentation below its definition"


def test_override_leaves_the_original_alone():
    config, _ = parse()
    changed = settings.override(config, train__lr=9.0, ema=0.5)
    assert (changed.train.lr, changed.ema) == (9.0, 0.5) and (config.train.lr, config.ema) == (0.05, 0.9)


@pytest.mark.parametrize("word, wanted", [("debug=true", True), ("debug=1", True), ("debug=YES", True), ("debug=on", True), ("debug=no", False),
                                          ("debug=perhaps", False), ("debug", False), ("nodebug=1", False)])
def test_every_command_knows_every_spelling_of_debug(word, wanted):
    from seglite.train import guarded

    def fails():
        raise ValueError("a problem")

    assert settings.wants_traceback(["x=1", word]) is wanted
    if wanted:
        pytest.raises(ValueError, guarded, fails, [word])
    else:
        assert guarded(fails, [word]) == 1


def test_who_interrupts_hears_of_a_checkpoint_where_there_is_one(capsys):
    from seglite import train

    def interrupted():
        raise KeyboardInterrupt

    assert train.guarded(interrupted) == 1 and capsys.readouterr().err == "interrupted\n"
    assert train.guarded(interrupted, (), train.CONTINUES) == 1 and "continues from the last checkpoint" in capsys.readouterr().err


def test_identity_ignores_where_and_how_fast():
    a = settings.identity(parse()[0])
    assert a == settings.identity(parse("out=elsewhere", "workers=3", "threads=1", "train.log_every=7")[0])
    assert a != settings.identity(parse("train.lr=0.1")[0]) and a != settings.identity(parse("seed=1")[0])
    assert a != settings.identity(parse("train.micro_batch=2")[0]), "its parts have batch norm statistics of their own"


@given(st.lists(st.text(max_size=12), max_size=4))
def test_any_words_give_settings_or_one_sentence(words):
    try:
        settings.parse(words, METHODS)
    except UsageError as problem:
        assert str(problem)
