"""`mishkit audit` and `mishkit lean`, and the models they take."""

from __future__ import annotations

import csv
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from mishkit.lab import LabError, surgery
from mishkit.lab.common.models import load
from mishkit.lab.surgery import Settings, effect
from mishkit_cli import app

BUILD = """
import torch
from torch import nn

def build(width=8):
    return nn.Sequential(nn.Linear(4, width), nn.SiLU(), nn.Linear(width, 2)), torch.ones(3, 4)

def alone():
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Dropout(), nn.Flatten(0))

def number():
    return 3
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "models.py"
    path.write_text(BUILD)
    return str(path)


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, arguments)
    return done.exit_code, done.output


def test_audit_prints_sites_and_totals_and_writes_them(file: str, tmp_path: Path) -> None:
    table = tmp_path / "sites.csv"
    status, printed = run("audit", f"{file}:build", "--option", "width=16", "--csv", str(table))
    assert status == 0, printed
    assert "SiLU, 3×16 float32: output, as Linear 2 keeps it" in printed
    assert "1 site, 1 of which pays" in printed and "kept for backward: 384 B" in printed
    (row,) = csv.DictReader(table.read_text().splitlines())
    assert (row["name"], row["function"], row["shape"], row["kept"]) == ("1", "silu", "3×16", "192")
    assert row["output_kept_by"] == "Linear 2"


def test_audit_of_mixed_precision_and_evaluation(file: str) -> None:
    status, printed = run("audit", f"{file}:alone", "-i", "5,4", "--autocast", "bfloat16", "--eval")
    assert status == 0, printed
    assert "GELU, 5×8 bfloat16: leave, as nobody keeps its output" in printed


def test_lean_prints_a_step_before_and_after(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The peaks take two processes, and are measured where they matter.
    peaks = lambda settings, how: 2000 if how is None else 1000  # noqa: E731
    monkeypatch.setattr(surgery, "peak_in_process", peaks)
    status, printed = run("lean", f"{file}:build", "--no-recompute")
    assert status == 0, printed
    assert "192 B" in printed and "99 B" in printed  # the output, and 24 bits
    assert not sys.platform.startswith("linux") or "0.500" in printed


def test_lean_recomputes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that can be, or as much as a budget asks for."""
    monkeypatch.setattr(surgery, "peak_in_process", lambda settings, how: None)
    source = """
    import torch
    from torch import nn
    def build():
        layers = [nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.SiLU()] * 1 + [nn.Conv2d(8, 8, 1)]
        return nn.Sequential(*layers), torch.randn(2, 3, 16, 16)
    """
    file = tmp_path / "net.py"
    file.write_text(textwrap.dedent(source))
    status, printed = run("lean", f"{file}:build")
    assert status == 0 and "48.06 KiB" in printed and "16.06 KiB" in printed, printed
    status, printed = run("lean", f"{file}:build", "--budget", "0.7")
    assert status == 0 and "32.06 KiB" in printed, printed
    status, printed = run("lean", f"{file}:build", "--budget", "40000")
    assert status == 0 and "32.06 KiB" in printed, printed


def test_the_effect_is_counted(file: str) -> None:
    counted = effect(Settings(f"{file}:build"), {"recompute": False}, peaks=False)
    full, bits = 3 * 8 * 4, 3
    assert counted.kept == counted.audited == 2 * full
    assert counted.promised == counted.after == full + bits
    assert (counted.sites_before, counted.sites_saving) == (full, full - bits)
    assert counted.loss > 0 and counted.loss_error < 1e-6 and 0 < counted.gradient_error < 1e-5
    assert counted.peak is counted.peak_after is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet50",), 'what is "resnet50"? There is timm:NAME'),
        (("{file}:number",), "is no torch.nn.Module but a int"),
        (("{file}:nothing",), 'has no function "nothing"'),
        (("{file}:alone",), "needs inputs: --input 2,3,224,224"),
        (("{file}:alone", "--input", "2;3"), 'numbers with commas, 2,3,224,224, not "2;3"'),
        (("{file}:build", "--option", "width"), 'an option is key=value, not "width"'),
        (("no/such/file.py:build",), "there is no file no/such/file.py"),
        (("no.such.module:build",), "can't be imported"),
        (("{file}:build", "--autocast", "int8"), "--autocast takes bfloat16 or float16, not int8"),
    ],
)  # fmt: skip
def test_mistakes(arguments: tuple[str, ...], message: str, file: str) -> None:
    status, printed = run("audit", *(text.format(file=file) for text in arguments))
    assert status == 1 and "Traceback" not in printed
    assert message in " ".join(printed.split())


def test_models_of_libraries(torchvision: None, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    transformers = pytest.importorskip("transformers")
    options = ("img_size=32", "depth=1", "act_layer=mish")
    example = load("timm:vit_tiny_patch16_224", ("2,3,32,32",), options)
    assert sum(isinstance(module, nn.Mish) for module in example.model.modules()) == 1
    assert example.model.training and example.model(*example.inputs).shape == (2, 1000)
    with pytest.raises(LabError, match='timm has no model "resnet5000"'):
        load("timm:resnet5000", ("2,3,32,32",))

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    config = transformers.BertConfig(**sizes, num_attention_heads=2, vocab_size=50)
    transformers.BertModel(config).save_pretrained(tmp_path)
    example = load(f"hf:{tmp_path}", ("2,7",), train=False)
    assert not example.model.training and example.inputs[0].dtype == torch.int64
    with pytest.raises(LabError, match=r"hf:.*/a/b: "):
        load(f"hf:{tmp_path / 'nothing'}/a/b", ("2,7",))


def test_a_file_may_define_what_looks_for_its_module(tmp_path: Path) -> None:
    path = tmp_path / "json.py"  # as a module is called that is imported already
    path.write_text(
        "from __future__ import annotations\n"
        "import dataclasses, torch\n"
        "@dataclasses.dataclass\n"
        "class Sizes:\n"
        "    width: int = 8\n"
        "def build():\n"
        "    return torch.nn.Sequential(torch.nn.Linear(5, Sizes().width), torch.nn.GELU()), "
        "torch.zeros(2, 5)\n"
    )
    status, printed = run("audit", f"{path}:build")
    assert status == 0, printed
    import json

    assert json.loads("1") == 1


# ---- neighbours of what is imported ----

ACTS = "from torch import nn\nact = nn.SiLU\n"
NET = """
def build():
    from torch import nn
    return nn.Sequential(nn.Linear(8, 8), act(), nn.Linear(8, 2))
"""


@pytest.mark.parametrize(
    ("files", "model"),
    [
        ({"tools1/acts.py": ACTS, "nets1/net.py": "from tools1.acts import act" + NET},
         "nets1/net.py:build"),  # the neighbour is in the current folder
        ({"nets2/acts2.py": ACTS, "nets2/net.py": "from acts2 import act" + NET},
         "nets2/net.py:build"),  # in the folder of the file
        ({"nets3/acts.py": ACTS, "nets3/__init__.py": "", "nets3/net.py": "from .acts import act"
          + NET}, "nets3.net:build"),  # in the package, by its name
        ({"tools4/acts.py": ACTS, "nets4/net.py": "from tools4.acts import act" + NET},
         "nets4.net:build"),
        ({"nets5/acts5.py": ACTS, "nets5/net.py": NET.replace("torch import nn", "torch import nn\n"
          "    from acts5 import act")}, "nets5/net.py:build"),  # imported later
    ],
    ids=["file", "sibling", "package", "name", "late"],
)  # fmt: skip
def test_a_file_finds_its_neighbours(
    files: dict[str, str], model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    status, printed = run("audit", model, "--input", "4,8")
    assert status == 0 and "SiLU, 4×8 float32" in printed, printed


def test_a_module_that_needs_its_package_is_told_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nets" / "deep").mkdir(parents=True)
    for name in ("nets/__init__.py", "nets/deep/__init__.py"):
        (tmp_path / name).write_text("")
    (tmp_path / "nets" / "deep" / "net.py").write_text("from .acts import act" + NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    status, printed = run("audit", "nets/deep/net.py:build", "--input", "4,8")
    assert status == 1 and "nets.deep.net:FUNCTION" in printed and printed.count("\n") == 1


# ---- what the models of transformers take ----

WAV2VEC2 = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "conv_dim": [8, 8], "conv_stride": [2, 2], "conv_kernel": [3, 3], "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
WHISPER = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "vocab_size": 99,
    "num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 20, "pad_token_id": 1,
    "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 4,
}  # fmt: skip
VIT = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "image_size": 16, "patch_size": 8,
}  # fmt: skip
T5 = {
    "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 99,
    "feed_forward_proj": "gelu", "decoder_start_token_id": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "sizes", "shapes", "dtypes"),
    [
        ("Wav2Vec2", WAV2VEC2, ("2,400",), [torch.float32]),
        ("Whisper", WHISPER, ("1,8,40",), [torch.float32, None, torch.int64]),
        ("Whisper", WHISPER, ("1,8,40", "1,6"), [torch.float32, None, torch.int64]),
        ("ViT", VIT, ("2,3,16,16",), [torch.float32]),
        ("T5", T5, ("2,7",), [torch.int64, None, torch.int64]),
    ],
)
def test_each_input_is_what_its_name_says(
    torchvision: None,
    family: str,
    sizes: dict[str, object],
    shapes: tuple[str, ...],
    dtypes: list[torch.dtype | None],
    tmp_path: Path,
) -> None:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{family}Config")(**sizes)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    inputs = load(f"hf:{tmp_path}", shapes).inputs
    assert [None if tensor is None else tensor.dtype for tensor in inputs] == dtypes
    assert tuple(inputs[0].shape) == tuple(map(int, shapes[0].split(",")))
    if len(shapes) > 1:
        assert tuple(inputs[2].shape) == (1, 6)
    arguments = [argument for shape in shapes for argument in ("--input", shape)]
    done = CliRunner().invoke(app, ["audit", f"hf:{tmp_path}", *arguments])
    assert done.exit_code == 0 and "kept for backward" in done.stdout, done.output
    wrong = CliRunner().invoke(app, ["audit", f"hf:{tmp_path}", "--input", "1"])
    assert wrong.exit_code == 1 and "Traceback" not in wrong.output
    assert wrong.stderr.splitlines()[-1].startswith("mishkit: ")
