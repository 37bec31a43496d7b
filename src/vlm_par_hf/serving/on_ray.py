"""The service as an application of Ray Serve: replicas on one machine or many, each with a model of its own.

    from ray import serve
    from vlm_par_hf.serving.on_ray import build_application
    from vlm_par_hf.serving.running import ServiceSettings

    serve.run(build_application(ServiceSettings("runs/pa100k"), replicas=2))

Ray Serve's proxy holds the port, spreads requests, and replaces a replica that dies; a replica that is stopped answers
what it has. It needs `ray[serve]`, which the extra `ray` does not bring. `/metrics` is that of one replica: Ray counts
requests itself.
"""

from typing import TYPE_CHECKING, Any

from vlm_par_hf.errors import ParImportError, ParValueError


if TYPE_CHECKING:
    from fastapi import FastAPI

    from .running import ServiceSettings

__all__ = ["build_application"]


def build_application(settings: "ServiceSettings", *, replicas: int = 2, cpus: float = 1.0, gpus: float = 0.0) -> Any:
    """An application for `ray.serve.run`.

    Args:
        settings: of the service; each replica builds the same from it. `drain` is Ray's.
        replicas: how many.
        cpus, gpus: of each.

    Raises:
        ValueError: `replicas` is below 1.
        ImportError: Ray is not installed.
    """
    if replicas < 1:
        raise ParValueError(f"replicas is {replicas}, expected at least 1")
    try:
        from ray import serve
    except ImportError as error:
        raise ParImportError(
            f'Ray Serve is needed here and is not installed ({error}): pip install "ray[serve]"', name="ray"
        ) from error

    def build() -> "FastAPI":
        from vlm_par_hf.auto import register
        from vlm_par_hf.serving.running import build_app

        register()
        return build_app(settings)

    deployment = serve.deployment(serve.ingress(build)()).options(
        name="vlm-par",
        num_replicas=replicas,
        max_ongoing_requests=settings.limits.max_in_work,
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
    )
    return deployment.bind()
