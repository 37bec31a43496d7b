"""The service as an application of Ray Serve: replicas on one machine or many, each with a model of its own.

    from ray import serve
    from vlm_par_hf.serving.on_ray import build_application
    from vlm_par_hf.serving.running import ServiceSettings

    serve.run(build_application(ServiceSettings("runs/pa100k"), replicas=2))

One light process reads requests and hands their pictures to the replicas, which hold the handler that `vlm-par serve`
has. Ray replaces a replica that dies; what it was answering is asked of another one, so that nothing is lost. It needs
`ray[serve]`, which the extra `ray` does not bring.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vlm_par_hf.errors import ParImportError, ParValueError
from vlm_par_hf.labels.schema import AttributeSchema

from .handler import AttributeHandler, Handler, Limits, PictureRequest
from .refusals import ModelFault, Refusal


if TYPE_CHECKING:
    from .running import ServiceSettings

__all__ = ["build_application"]

_REPLICAS = "vlm-par"  # name of the deployment
_TRIES = 4


def build_application(settings: "ServiceSettings", *, replicas: int = 2, cpus: float = 1.0, gpus: float = 0.0) -> Any:
    """An application for `ray.serve.run`.

    Args:
        settings: of the service; `drain` is Ray's.
        replicas: how many processes with a model.
        cpus, gpus: of each.

    Raises:
        ValueError: `replicas` is below 1.
        ImportError: Ray Serve is not installed.
    """
    if replicas < 1:
        raise ParValueError(f"replicas is {replicas}, expected at least 1")
    try:
        from ray import serve
    except ImportError as error:
        raise ParImportError(
            f'Ray Serve is needed here and is not installed ({error}): pip install "ray[serve]"', name="ray"
        ) from error

    def build_front() -> Any:
        from vlm_par_hf.retrieval.gallery import Gallery
        from vlm_par_hf.serving.app import create_app
        from vlm_par_hf.serving.measures import Measures

        handle = serve.get_deployment_handle(_REPLICAS, serve.get_replica_context().app_name)
        gallery = None if settings.gallery is None else Gallery.open(settings.gallery)  # the replicas compare it
        handler = _RemoteHandler(handle, settings.limits)
        return create_app(handler, measures=Measures(), gallery=gallery, **settings.of_the_app())

    most = settings.limits.max_in_work
    workers = serve.deployment(_Replica).options(
        name=_REPLICAS,
        num_replicas=replicas,
        max_ongoing_requests=most,
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
    )
    front = serve.deployment(serve.ingress(build_front)()).options(
        name="front", max_ongoing_requests=4 * most, ray_actor_options={"num_cpus": 0}
    )
    return front.bind(workers.bind(settings))


class _Replica:
    """A process of Ray with a model."""

    async def __init__(self, settings: "ServiceSettings") -> None:
        from vlm_par_hf.auto import register
        from vlm_par_hf.serving.running import load_pipeline, open_gallery

        register()
        pipe = load_pipeline(settings)
        if settings.gallery is not None:
            open_gallery(settings.gallery, pipe.model.config.schema)
        self._handler = AttributeHandler(pipe, settings.limits)
        await self._handler.start()

    async def describe(self) -> dict[str, Any]:
        """What the front needs to know of the model."""
        return {"schema": self._handler.schema.to_list(), "note": self._handler.note}

    async def answer(self, pictures: list[tuple], options: dict[str, Any]) -> list[Any] | Refusal:
        """As `AttributeHandler.answer`; a refusal of all comes as the result, because Ray wraps what is raised."""
        try:
            return await self._handler.answer([PictureRequest(*one) for one in pictures], options)
        except Refusal as error:
            return error


class _RemoteHandler(Handler):
    """Hands pictures to the replicas; what a replica that died was answering, another one answers."""

    def __init__(self, replicas: Any, limits: Limits) -> None:
        super().__init__(limits)
        self._replicas = replicas

    async def start(self) -> None:
        found = await self._replicas.describe.remote()
        self.schema, self.note = AttributeSchema(found["schema"]), found["note"]
        self.is_ready = True

    async def stop(self) -> None:
        self.is_ready = False

    async def answer(
        self, pictures: Sequence[PictureRequest], options: Mapping[str, Any] | None = None
    ) -> list[list[dict[str, Any]] | Refusal]:
        from ray.exceptions import RayActorError

        for _ in range(_TRIES):
            try:
                found = await self._replicas.answer.remote([tuple(one) for one in pictures], dict(options or {}))
            except RayActorError:  # the replica is gone
                continue
            if isinstance(found, Refusal):
                raise found
            return found
        raise ModelFault(f"{_TRIES} replicas died over one request")
