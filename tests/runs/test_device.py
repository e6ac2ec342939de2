import os
import warnings
import weakref

import pytest
import torch

from blocklora.engine.memory import free_bytes, is_out_of_memory
from blocklora.errors import UserError
from blocklora.runs.device import peak_memory, require_device, reset_peak_memory
from blocklora.runs.gpu import VISIBLE


@pytest.fixture
def card(monkeypatch):
    """Return a function that pretends that there is a GPU, by default one too old for bf16."""
    cuda = torch.backends.cuda
    settings = [
        (cuda.matmul, "allow_tf32"),
        (torch.backends.cudnn, "allow_tf32"),
        (cuda.matmul, "allow_bf16_reduced_precision_reduction"),
        (cuda.matmul, "allow_fp16_reduced_precision_reduction"),
    ]
    before, attention = [getattr(*setting) for setting in settings], cuda.cudnn_sdp_enabled()
    for setting in settings:
        setattr(*setting, True)
    cuda.enable_cudnn_sdp(True)

    def install(name="Tesla T4", capability=(7, 5), built_for=()):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: [*built_for])
        return lambda: [*(getattr(*setting) for setting in settings), cuda.cudnn_sdp_enabled()]

    yield install
    for setting, value in zip(settings, before, strict=True):
        setattr(*setting, value)
    cuda.enable_cudnn_sdp(attention)


def refusal(*arguments):
    """Return the words in which a device is refused, which are one line and come alone."""
    with warnings.catch_warnings(record=True) as noise, pytest.raises(UserError) as caught:
        require_device(*arguments)
    assert not noise
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_bf16_on_a_gpu_without_it_is_refused(card):
    card()
    said = refusal("cuda", "bf16")
    assert said.startswith("Tesla T4 does not compute in bf16; choose the precision fp16")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_old_gpu_computes_in_the_other_precisions(card, precision):
    card()
    require_device("cuda", precision)


def test_fp16_needs_a_gpu():
    assert refusal("cpu", "fp16") == "precision fp16 needs a GPU; use fp32 on the CPU"


@pytest.fixture
def driver(monkeypatch):
    """Return a function that lets PyTorch see no GPU, for a reason of which it also warns."""
    monkeypatch.delenv(VISIBLE, raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")

    def install(error):
        def is_available():
            warnings.warn(f"CUDA initialization: {error}", UserWarning, stacklevel=2)
            return False

        def init():
            raise error

        monkeypatch.setattr(torch.cuda, "is_available", is_available)
        monkeypatch.setattr(torch.cuda, "init", init)

    return install


OLD_DRIVER = "The NVIDIA driver on your system is too old (found version 11040)."
NO_DRIVER = "Found no NVIDIA driver on your system."
ODD_DRIVER = "Error 803: system has unsupported display driver / cuda driver combination"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("No CUDA GPUs are available"), "No CUDA GPUs are available"),
        (RuntimeError(f"{OLD_DRIVER}\n Please update"), f"{OLD_DRIVER} Please update"),
        (RuntimeError(NO_DRIVER), NO_DRIVER),
        (RuntimeError(ODD_DRIVER), ODD_DRIVER),
        (torch.cuda.DeferredCudaCallError("device < num_gpus\n"), "device < num_gpus"),
    ],
)
def test_a_gpu_that_pytorch_cannot_use_is_never_replaced(driver, error, reason):
    driver(error)
    said = refusal("cuda", "fp32")
    assert f"PyTorch can use no GPU here: {reason}. PyTorch {torch.__version__}" in said
    assert said.endswith(
        "is built for CUDA 13.0; update the driver, run on another machine, or choose the device "
        "cpu (in config.yaml or by --device)"
    )


def test_a_build_without_cuda_is_told(driver, monkeypatch):
    driver(AssertionError("Torch not compiled with CUDA enabled"))
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is built for no CUDA; install a build for CUDA, or" in refusal("cuda", "fp32")


@pytest.mark.parametrize("value", ["", "-1", "NoDevFiles"])
def test_gpus_hidden_by_the_environment_are_told(driver, monkeypatch, value):
    driver(RuntimeError("No CUDA GPUs are available"))
    monkeypatch.setenv(VISIBLE, value)
    said = refusal("cuda", "fp32")
    assert f"but CUDA_VISIBLE_DEVICES={value} hides all GPUs; unset it, or choose" in said


def test_a_gpu_that_the_environment_names_but_does_not_exist_is_told(driver, monkeypatch):
    driver(RuntimeError("No CUDA GPUs are available"))
    monkeypatch.setenv(VISIBLE, "7")
    said = refusal("cuda", "fp32")
    assert "no GPU here (CUDA_VISIBLE_DEVICES=7): No CUDA GPUs are available. PyTorch" in said


def test_the_reason_of_pytorch_itself_is_told():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match=r"NVIDIA driver|CUDA GPUs|built for no CUDA"):
        require_device("cuda", "fp32")


def test_a_gpu_too_old_for_this_pytorch_is_refused(card):
    built_for = ["sm_75", "sm_100", "compute_120"]
    card(built_for=built_for)
    require_device("cuda", "fp32")
    card("Tesla V100", (7, 0), built_for)
    said = refusal("cuda", "fp32")
    assert said.startswith("Tesla V100 has compute capability 7.0, but PyTorch")
    assert "needs 7.5 or newer; run on another machine" in said


def test_kernels_are_chosen_that_keep_fp32_whole_and_attention_finite(card):
    chosen = card()
    assert chosen() == [True] * 5
    require_device("cuda", "fp16")
    assert chosen() == [False] * 5


@pytest.mark.parametrize(("jobs", "shares"), [(1, []), (3, [1 / 3])])
def test_jobs_that_share_a_gpu_use_their_share_of_its_memory(card, monkeypatch, jobs, shares):
    card()
    found = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", found.append)
    require_device("cuda", "fp16", jobs)
    assert found == shares


def test_peak_memory_sees_what_was_freed_until_it_is_reset():
    reset_peak_memory("cpu")
    before = peak_memory("cpu")["peak_memory_bytes"]
    torch.ones(before // 4)  # so many bytes, and something is resident beside them
    peak = peak_memory("cpu")["peak_memory_bytes"]
    assert before < peak < 3 * before
    reset_peak_memory("cpu")
    assert peak_memory("cpu")["peak_memory_bytes"] < (before + peak) / 2


def test_free_memory_is_a_part_of_what_there_is():
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < free_bytes("cpu") < total


def test_unused_memory_of_this_process_counts_as_free(monkeypatch):
    """Of 100 bytes, 30 are used and 20 kept beside them; 40 more are kept for garbage."""
    kept, knot = {"bytes": 60}, []
    knot.append(knot)  # refers to itself, so that only a collection frees it
    garbage = weakref.ref(token := torch.ones(1), lambda _: None)
    knot.append(token)
    del knot, token

    def empty_cache():
        if garbage() is None:
            kept["bytes"] = 20

    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 30)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 30 + kept["bytes"])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (70 - kept["bytes"], 100))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda: 1.0)
    assert free_bytes("cuda") == 70
    assert kept["bytes"] == 20


@pytest.mark.parametrize(("share", "free"), [(1.0, 60), (0.5, 40), (0.75, 60), (0.05, -5)])
def test_memory_beyond_the_share_of_a_process_is_not_free(monkeypatch, share, free):
    """Of 100 bytes, this process uses 10 and keeps 15 more, and others use 25."""
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 10)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 25)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (45, 100))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda: share)
    assert free_bytes("cuda") == free


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
)
def test_every_way_of_running_out_of_memory_is_recognised(error):
    assert is_out_of_memory(error)
    later = RuntimeError("the recording could not be ended")
    later.__context__ = error
    assert is_out_of_memory(later)


def test_other_errors_are_not_taken_for_missing_memory():
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access"))
