"""The command line: options, their errors, recipes and the lines of the log."""

import logging
import os
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pytest

import pyseg
from pyseg import _cli, _help, _progress, cooccur, evaluate, predict, train
from pyseg.config import LossConfig, TrainConfig, make_parser
from pyseg.data.records import encode_frames, write_records
from pyseg.errors import ArgumentError, PysegError, UserError
from pyseg.evaluate import EvaluateConfig
from pyseg.predict import PredictConfig
from pyseg.runs import Run
from pyseg.train import parse_options


def refused(*words: str) -> str:
    with pytest.raises(UserError) as error:
        parse_options(words)
    return str(error.value)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--pretrain.steps", "-1"], "--pretrain.steps: expected at least 0, found -1"),
        (["--pretrain.steps", "x"], "--pretrain.steps x: expected a whole number"),
        (["--stage", "foo"], "--stage foo: expected one of 'both', 'pretrain', 'finetune'"),
        (["--seed", "9" * 30], "--seed: expected at most"),
        (["--finetune.batch_size", str(2**40)], "--finetune.batch_size: expected at most"),
        (["--data", ""], "--data: expected a value, found an empty one"),
        (["--resume="], "--resume: expected a value, found an empty one"),
        (["--data", "a\0b"], "--data 'a\\x00b': expected text without a NUL character"),
        (["--pretrain.stepz", "3"], "(did you mean --pretrain.steps?); `python -m pyseg.train --h"),
        (["--config", "stag: both"], "--stag: there is no such option (did you mean --stage?)"),
        (["--model"], "is written --model=-..."),
        (["--config", "[" * 3000 + "]" * 3000], "--config: expected a YAML file of "),
    ],
)
def test_an_error_is_one_line_that_names_the_option(words, expected):
    message = refused(*words)
    assert expected in message
    assert "\n" not in message
    assert len(message) < 400


def test_a_file_of_options_that_are_nested_too_deeply(tmp_path):
    path = tmp_path / "deep.yaml"
    path.write_text("overrides: {a: " + "[" * 3000 + "]" * 3000 + "}")
    message = refused("--config", str(path))
    assert "--config" in message
    assert len(message) < 400


@pytest.fixture
def data(tmp_path):
    """Ten videos of one frame."""
    frames = np.zeros((1, 1152), np.uint8)
    write_records(tmp_path / "d.tfrecord", [encode_frames(f"v{n}", frames, [n]) for n in range(10)])
    return str(tmp_path / "d.tfrecord")


@pytest.mark.parametrize("words", [["--recipe", "best"], ["--rec", "best"], ["--config", None]])
def test_a_recipe_sets_defaults_wherever_it_is_named(words, tmp_path):
    path = tmp_path / "best.yaml"
    path.write_text("recipe: best\nloss: {threshold: 0.25}\n")
    given = parse_options([word or str(path) for word in words] + ["--loss.rated_weight", "1.5"])
    assert (given.recipe, given.copies, given.loss.absent_evidence) == ("best", 1, "bayes")
    assert given.loss.rated_weight == 1.5
    assert given.loss.threshold == (0.25 if None in words else 0.0)


def test_a_recipe_sets_defaults_in_python_too():
    assert TrainConfig(recipe="best") == parse_options(["--recipe", "best"])
    assert TrainConfig(recipe="paper") == parse_options(["--recipe", "paper"])
    given = TrainConfig("data", recipe="best", copies=1, loss=LossConfig(threshold=0.25))
    assert (given.copies, given.loss.threshold, given.loss.absent_evidence) == (1, 0.25, 0.0)
    assert replace(given, recipe="paper").model == given.model  # then all options are given
    with pytest.raises(ArgumentError, match="recipe: expected one of sample, best, paper, found"):
        TrainConfig(recipe="x")


def test_saved_options_name_the_recipe(tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse_options(["--recipe", "best", "--stage", "finetune", "--print_config=skip_default"])
    kept = tmp_path / "config.yaml"
    kept.write_text(capsys.readouterr().out)
    assert "recipe: best" in kept.read_text()
    assert "copies" not in kept.read_text()
    expected = parse_options(["--recipe", "best", "--stage", "finetune"])
    assert parse_options(["--config", str(kept)]) == Run(tmp_path).config() == expected


def test_a_run_s_options_name_no_other_file(tmp_path):
    secret = tmp_path / "secret.yaml"
    secret.write_text("token: [hunter2")
    for text in (f"config: {secret}\n", f"pretrain: {secret}\n", "[" * 3000, "{}", "run: ''"):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(UserError, match=r"config\.yaml: ") as error:
            Run(tmp_path).config()
        assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("id", ["-Q7Gf", "--4-gq", "null", "~", "12"])
def test_an_id_may_be_any_word(id):
    parser = _cli.make_parser(PredictConfig, "pyseg.predict", "")
    options = ["--run", "r", f"--video={id}", "--timeline", "t.png"]
    assert _cli.parse(parser, PredictConfig, options).video == id


def test_an_option_may_be_given_several_times(tmp_path):
    def exports(*words):
        parser = _cli.make_parser(PredictConfig, "pyseg.predict", "")
        return _cli.parse(parser, PredictConfig, ["--run", "r", "--video=v", *words]).export

    hostile = 'a, [b]: "c".csv'
    assert exports("--export", hostile, "--top", "3", "--export=null.json") == [
        hostile,
        "null.json",
    ]
    assert exports("--export", "1.csv") == ["1.csv"]
    (tmp_path / "c.yaml").write_text("export: [a.csv, b.csv]\n")
    assert exports("--config", str(tmp_path / "c.yaml")) == ["a.csv", "b.csv"]
    assert exports("--config", str(tmp_path / "c.yaml"), "--export", "c.csv") == ["c.csv"]
    for words in (["--export"], ["--export="], ["--export", "a.csv", "--export"]):
        with pytest.raises(UserError, match="--export: expected a value, found"):
            exports(*words)


def test_option_converts_only_argument_errors():
    with pytest.raises(UserError, match=r"^--model x: expected y$"), _cli.option("model", "x"):
        raise ArgumentError("name: expected y")
    with pytest.raises(ValueError, match="a fault"), _cli.option("model", "x"):
        raise ValueError("a fault")


@pytest.mark.parametrize(
    ("module", "where", "words"),
    [
        (train, "open_data", []),
        (evaluate, "Run", ["--run", "r"]),
        (predict, "scorer.Run", ["--run", "r"]),
        (cooccur, "find_shards", ["--out", "o.npz", "--data", "d.tfrecord"]),
    ],
)
@pytest.mark.parametrize("error", [ValueError, ArgumentError])
def test_a_fault_of_the_program_keeps_its_traceback(module, where, words, error, monkeypatch):
    def planted(*_, **__):
        raise error("could not broadcast input array")

    monkeypatch.setattr(f"{module.__name__}.{where}", planted)
    monkeypatch.setattr(_cli, "_show_log", lambda first: None)
    with pytest.raises(error, match="broadcast"):
        _cli.run(lambda: module.main(words))


@pytest.mark.parametrize(
    ("words", "other"),
    [
        (["--run", "r", "--out", "a.npz", "--scores", "{}/a.npz"], "scores"),
        (["--run", "r", "--out", "s.csv", "--data", "s.csv"], "data"),
        (["--run", "r", "--out", "s.csv", "--classes", "./s.csv"], "classes"),
    ],
)
def test_an_output_must_not_be_an_input(words, other, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [word.format(tmp_path) for word in words]
    expected = r"--out \S+: expected another file than that of --"
    with pytest.raises(UserError, match=expected + other):
        predict.main(words)
    with pytest.raises(UserError, match=expected + "labels"):
        cooccur.main(["--labels", "l", "--out", "l"])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\x89\xff: 1\n", r"expected YAML, found bytes that are not UTF-8: b'\\x89'$"),
        (b"", "expected a YAML file of options, found none$"),
        (b"- a\n- b\n", "expected a YAML file of options, found - a - b$"),
        (b"[" * 5000, "expected YAML, found: while parsing a flow node"),
    ],
)
def test_invalid_files_of_options(content, expected, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match="^--config.*: " + expected):
        evaluate.main(["--config", str(path)])


def printed(main: Callable[[list[str]], object], words: list[str], capsys) -> str:
    """Returns what a command prints that only answers a question."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("words", [["--help"], ["--data", "none", "-h"], ["--help", "--run=x"]])
def test_help_fits_a_screen(words: list[str], capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    lines = printed(train.main, words, capsys).splitlines()
    assert lines[0] == "usage: python -m pyseg.train [--option VALUE ...]"
    assert len(lines) <= 50
    assert max(map(len, lines)) <= 100
    assert (
        f"{'  --test_fraction X':30}The fraction of the videos to hold out for evaluation (0.2)"
        in lines
    )
    assert "required" not in "".join(lines)


def test_help_explains_an_option_or_a_group(capsys) -> None:
    text = printed(train.main, ["--help", "loss"], capsys)
    assert re.findall(r"^  --(\S+)", text, re.M)[:2] == ["loss.rated_weight", "loss.unrated_weight"]
    assert text == printed(train.main, ["--help=--loss"], capsys)
    one = printed(train.main, ["--help", "on-nan"], capsys)
    assert " ".join(one.split()).startswith(
        '--on_nan {raise,skip} "raise" at a loss that is not finite'
    )
    every = printed(train.main, ["--help", "all"], capsys)
    assert text in every
    assert one in every
    with pytest.raises(UserError, match=r"^--help los: expected an option, .*mean loss\?"):
        train.main(["--help", "los"])


@pytest.mark.parametrize(
    "config_class", [TrainConfig, EvaluateConfig, PredictConfig, cooccur.CooccurConfig]
)
def test_help_knows_every_option(config_class: type) -> None:
    text = _help.explain(config_class, "all")
    for option in fields(config_class):
        assert re.search(rf"^  --(\[no_\])?{option.name}\b", text, re.M), option.name
    assert not re.search(r"^  --.*\n {6}[(.]", text, re.M), "an option without a text"
    for name in (n for group in getattr(config_class, "GROUPS", {}).values() for n in group):
        assert name in {option.name for option in fields(config_class)}


def test_version(capsys) -> None:
    assert printed(train.main, ["--version"], capsys) == f"pyseg {pyseg.__version__}\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--final_fit"], True),
        (["--final-fit", "--seed", "3"], True),
        (["--final_fit", "true"], True),
        (["--final_fit=true", "--no_final_fit"], False),
        (["--final_fit", "--no-final-fit"], False),
        (["--final_fit", "false"], False),
        (["--final"], True),
    ],
)
def test_flags_need_no_value(words: list[str], expected: bool) -> None:
    assert parse_options(words).final_fit is expected


def test_flags_may_be_left_to_the_machine() -> None:
    given = parse_options(["--no_tf32", "--cuda_graph"])
    assert (given.tf32, given.cuda_graph) == (False, True)
    assert (parse_options([]).tf32, parse_options([]).cuda_graph) == (None, None)


def test_what_is_no_flag_is_refused() -> None:
    with pytest.raises(UserError, match="--no_seed: there is no such option"):
        parse_options(["--no_seed", "3"])
    with pytest.raises(UserError, match="--final_fit 3: expected"):
        parse_options(["--final_fit=3"])


def test_an_unwritable_output_is_reported_before_any_work(tmp_path):
    out = str(tmp_path / "no/such/x.npz")
    with pytest.raises(UserError, match=r"--out .*: expected a folder"):
        cooccur.main(["--out", out, "--data", "none"])
    with pytest.raises(UserError, match=r"--out /proc/s.csv: the folder /proc cannot be written"):
        predict.main(["--run", "r", "--out", "/proc/s.csv"])
    with pytest.raises(UserError, match=r"--scores .*: expected a folder"):
        predict.main(["--run", "none", "--scores", out])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"clusters": "x"}, "--overrides.clusters: expected int, found 'x'"),
        ({"dropout": True}, "--overrides.dropout: expected float, found True"),
        ({"num_classes": 3}, "--overrides.num_classes: expected none"),
        ({"head": 3}, "--overrides.head 3: expected one of"),
        ({"clusters": 10**11}, "--overrides.clusters 100000000000: expected a model that fits"),
        ({"clusters": 10**18}, "--overrides.*fit"),
    ],
)
def test_overrides_that_do_not_fit(overrides, expected, data, tmp_path):
    run = str(tmp_path / "run")
    with pytest.raises(UserError, match=expected):
        train.train(TrainConfig(data=data, overrides=overrides, run=run))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["empty", "npz", "text", "shape", "nan"])
def test_an_array_that_does_not_fit(kind, data, tmp_path):
    path = tmp_path / "array.npy"
    arrays = {"text": np.array(["a"]), "shape": np.zeros((2, 3)), "nan": np.full(1152, np.nan)}
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "npz":
        with path.open("wb") as file:
            np.savez(file, a=np.zeros(3))
    else:
        np.save(path, arrays[kind])
    with pytest.raises(PysegError, match=r"--eigenvalues.*: expected"):
        train.train(TrainConfig(data=data, eigenvalues=str(path)))


@pytest.fixture
def log(monkeypatch) -> logging.Logger:
    """The log without handlers: commands in other tests of the same process add some."""
    log = logging.getLogger("pyseg")
    for name, value in (("handlers", []), ("propagate", True), ("level", logging.NOTSET)):
        monkeypatch.setattr(log, name, value)
    return log


def test_progress_is_a_line_of_the_log_without_a_terminal(caplog, monkeypatch, log):
    clock = iter([0.0, *[4.0] * 1, *[20.0] * 2, *[21.0] * 1])
    monkeypatch.setattr(_progress.time, "monotonic", lambda: next(clock))
    with (
        caplog.at_level(logging.INFO, logger="pyseg"),
        _progress.Progress("pretrain", "steps", 1000, examples=80) as bar,
    ):
        bar.note(loss="0.123")
        for _ in range(3):
            bar.update(50)
    [line] = caplog.messages
    assert line == ("pretrain: 100 of 1,000 steps (10%), loss 0.123, 400 examples/s, 0:03:00 left")


READER = """
import os, threading
from pyseg import _cli
reader, writer = os.pipe()
os.dup2(writer, 1)
os.close(writer)
threading.Thread(target=lambda: (os.read(reader, 2), os.close(reader))).start()
_cli.run(lambda: [print(n) for n in range(100_000)])
"""


def test_a_reader_that_has_seen_enough_is_no_error(python):
    done = python("-c", READER)
    assert (done.returncode, done.stderr) == (141, "")


def test_another_broken_pipe_keeps_its_traceback():
    def broken():
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        _cli.run(broken)


def test_an_interruption_is_a_line(capsys):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        _cli.run(interrupted)
    assert (stop.value.code, capsys.readouterr().err) == (130, "pyseg: interrupted\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_status_tells_the_signal(number, capsys, ctrl_c):
    def stopped_by_itself():
        with _cli.stop_requests() as stopped:
            os.kill(os.getpid(), number)
            if stopped():
                raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        _cli.run(stopped_by_itself)
    assert (stop.value.code, capsys.readouterr().err) == (128 + number, "pyseg: interrupted\n")


def test_log_level_is_checked(capsys, monkeypatch, log):
    monkeypatch.setenv("PYSEG_LOG", "loud")
    with pytest.raises(SystemExit):
        _cli.run(lambda: None)
    assert capsys.readouterr().err == (
        "pyseg: error: PYSEG_LOG=loud: expected one of debug, info, warning, error\n"
    )
    assert not log.handlers
    assert make_parser().prog == "python -m pyseg.train"
    assert sys.stdout.writable()
