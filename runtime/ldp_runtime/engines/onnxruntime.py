"""ONNX Runtime engines: the CPU provider anywhere, the CUDA provider by configuration.

Tensors are bound by pointer, so a call's keys and values land in the cache without a copy. Outputs without a tensor to
write to are not computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ldp_runtime.engines.hardware import default_threads, local_capability
from ldp_runtime.errors import CapacityError, ClosedError, IncompatibleBundleError, IntegrityError, LdpError
from ldp_runtime.system.installation import install
from ldp_runtime.system.telemetry import without_telemetry

if TYPE_CHECKING:
    import onnxruntime
    import torch

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
#: Float32 stays float32: the CUDA provider would round products to TensorFloat-32.
_PROVIDER_OPTIONS: dict[str, dict[str, str]] = {"cpu": {}, "cuda": {"use_tf32": "0"}}
#: Bytes of an engine's files from which each of its calls gives memory back. To small ones it would cost time.
_LARGE = 256 * 2**20
#: Element types of ONNX Runtime by the names of PyTorch's.
_ELEMENT_TYPES: dict[str, Any] = {
    "torch.float32": np.float32,
    "torch.float16": np.float16,
    "torch.bfloat16": 16,  # onnx.TensorProto.BFLOAT16: NumPy has no such type
    "torch.int64": np.int64,
    "torch.bool": np.bool_,
}


def import_onnxruntime() -> Any:
    """Imports onnxruntime, with its telemetry off unless the environment says otherwise.

    Raises:
        IncompatibleBundleError: it is not installed, or is broken; the hint names the extra to install.
    """
    without_telemetry()
    try:
        import onnxruntime as ort
    except ImportError as error:
        if error.name == "onnxruntime":
            raise IncompatibleBundleError(
                "this bundle needs ONNX Runtime, which is not installed",
                hint=f"{install('cpu')}; on a machine with an NVIDIA GPU [cuda]",
            ) from error
        raise _broken(str(error)) from error
    except (AttributeError, OSError) as error:
        raise _broken(str(error)) from error
    absent = [
        name for name in ("InferenceSession", "SessionOptions", "get_available_providers") if not hasattr(ort, name)
    ]
    if absent:  # removing one of its two packages takes files of the other away
        raise _broken(f"the package has no {absent[0]}")
    return ort


def _broken(why: str) -> IncompatibleBundleError:
    return IncompatibleBundleError(
        f"onnxruntime is broken: {why}",
        hint="reinstall one of the two: pip uninstall onnxruntime onnxruntime-gpu, then pip install 'ldp-export[cpu]' "
        "(or [cuda])",
    )


def check_provider(device: torch.device | str) -> None:
    """Raises IncompatibleBundleError when ONNX Runtime cannot run on `device` here; its type is enough."""
    kind = device if isinstance(device, str) else device.type
    ort = import_onnxruntime()
    provider = _PROVIDERS.get(kind)
    if provider is None:
        raise IncompatibleBundleError(
            f"ONNX Runtime engines run on 'cpu' or 'cuda', not on {kind!r}",
            hint="load with device='cpu' (--device cpu), or 'cuda'",
        )
    if provider not in ort.get_available_providers():
        raise IncompatibleBundleError(
            f"this ONNX Runtime ({ort.__version__}) has no {provider}; it offers {ort.get_available_providers()}",
            hint="install onnxruntime-gpu instead of onnxruntime ('ldp-export[cuda]'), or load with device='cpu'",
        )
    if kind == "cuda" and local_capability() is None:
        raise IncompatibleBundleError(
            "device 'cuda' was asked for, but PyTorch finds no CUDA GPU on this machine",
            hint="load with device='cpu'; ldp-export doctor says what the GPU lacks",
        )


def _provider_options(device: torch.device) -> dict[str, str]:
    """Settings of the execution provider, including which of several GPUs it uses."""
    index = {"device_id": str(device.index or 0)} if device.type == "cuda" else {}
    return _PROVIDER_OPTIONS[device.type] | index


def _session_options(ort: Any, device: torch.device, threads: int | None) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors; the rest arrives as exceptions
    options.enable_mem_pattern = False  # patterns are kept per shape: unbounded with a dynamic number of tokens
    # Idle threads that spin steal the cores from the loop between calls, from the other engines' pools and from
    # neighbours: on two cores with a busy neighbour an image took 2.3 times as long with spinning as without.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Left to itself, it starts a thread for each core of the machine, and pins them where this process may not run.
    options.intra_op_num_threads = threads or default_threads()
    # It would multiply 8-bit numbers wherever weights are stored in 8 bits. What is multiplied is the bundle's to say.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    if device.type != "cpu":
        # The provider list alone does not show it when single nodes land on the CPU.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


def _run_options(ort: Any, device: torch.device, path: Path) -> Any:
    """Options of a call: a large engine on a CPU gives the memory of its activations back, for the next engine's."""
    if device.type != "cpu" or sum(file.stat().st_size for file in path.parent.iterdir()) < _LARGE:
        return None
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


class OnnxRuntimeEngine:
    """Engine of one ONNX graph in one session.

    Raises:
        IncompatibleBundleError: the provider is missing, or a node has no kernel on it.
        IntegrityError: the file is no valid model.
    """

    def __init__(self, name: str, path: Path, device: torch.device | str = "cpu", threads: int | None = None) -> None:
        import torch

        ort = import_onnxruntime()
        self.name = name
        self.device = torch.device(device)
        check_provider(self.device)
        provider = _PROVIDERS[self.device.type]
        options = _session_options(ort, self.device, threads)
        try:
            session = ort.InferenceSession(path, options, providers=[(provider, _provider_options(self.device))])
        except Exception as error:  # onnxruntime raises a type per status code
            raise _load_error(error, name, path) from error
        if session.get_providers()[0] != provider:
            raise IncompatibleBundleError(
                f"ONNX Runtime loaded {name!r} on {session.get_providers()}, not {provider}",
                hint="install onnxruntime-gpu alone, without onnxruntime beside it; ldp-export doctor checks it",
            )
        self._session: onnxruntime.InferenceSession | None = session
        self._run_options = _run_options(ort, self.device, path)

    def run(self, inputs: Mapping[str, torch.Tensor], outputs: Mapping[str, torch.Tensor]) -> None:
        if self._session is None:
            raise ClosedError(f"the engine {self.name!r} is closed", hint="load the bundle again: Pipeline.load(...)")
        binding = self._session.io_binding()
        for bind, tensors in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
            for name, tensor in tensors.items():
                bind(
                    name,
                    self.device.type,
                    self.device.index or 0,
                    _ELEMENT_TYPES[str(tensor.dtype)],
                    tuple(tensor.shape),
                    tensor.data_ptr(),
                )
        if self.device.type == "cuda":
            import torch

            torch.cuda.current_stream(self.device).synchronize()  # the session runs on a stream of its own
        try:
            self._session.run_with_iobinding(binding, self._run_options)
        except Exception as error:  # onnxruntime raises a type per status code
            raise _run_error(error, self.name, inputs) from error

    def close(self) -> None:
        self._session = None


def _load_error(error: Exception, name: str, path: Path) -> LdpError:
    text = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
    if "NOT_IMPLEMENTED" in text or "fallback" in text:
        return IncompatibleBundleError(f"ONNX Runtime cannot run the graph {name!r} here: {text}")
    return IntegrityError(
        f"ONNX Runtime cannot load {path}: {text}", hint="rebuild the bundle, or copy it again from where it was built"
    )


def _run_error(error: Exception, name: str, inputs: Mapping[str, torch.Tensor]) -> LdpError:
    text = str(error).strip().splitlines()[0]
    shapes = {key: tuple(value.shape) for key, value in list(inputs.items())[:4]}
    if "alloc" in text.lower() or "bad_alloc" in text:
        return CapacityError(
            f"ONNX Runtime ran out of memory in the graph {name!r} (inputs {shapes}): {text}",
            hint="draw fewer images at a time, or load with a lower max_batch",
        )
    return LdpError(f"the graph {name!r} failed with inputs {shapes}: {text}")
