"""Pushing models, processors, pipelines and data sets to the Hub: one commit, whole or not at all, with a card."""

import filecmp
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlm_par_hf.utils import atomic_write_json

from .model_card import CARD, EVAL_RESULTS, write_model_card


__all__ = ["PushToHub", "push_folder", "take_hub_options"]

_HINTS = {
    401: "no valid token: run `hf auth login` or set HF_TOKEN",
    403: "the token may not write there: use one with write permission for this account or organisation",
    404: "no such repository or revision for this token; a private one looks the same to a stranger",
    409: "something else changed the repository at the same time: push again",
    412: "something else changed the repository at the same time: push again",
    429: "too many requests: push again later",
}
_HUB_OPTIONS = ("repo_id", "commit_message", "commit_description", "private", "token", "revision", "create_pr", "tags")


class PushToHub:
    """`save_pretrained` and `push_to_hub` of models, processors and pipelines; before the transformers class among the
    bases.

    transformers' own push leaves out files in folders, reads the card of `main` whatever the revision, and where there
    is none pushes a form full of "[More Information Needed]".
    """

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> Any:
        """As that of transformers, into a folder that `from_pretrained` loads.

        Args:
            save_directory: the folder; made if missing.
            kwargs: of transformers' `save_pretrained`. With `push_to_hub=True` the folder's content is also pushed, to
                the repository of the folder's name or of `repo_id`; the keywords of `push_to_hub` are taken, too.
        """
        hub_options = take_hub_options(save_directory, kwargs)
        result = self._save_files(save_directory, **kwargs)
        if hub_options is not None:
            self.push_to_hub(**hub_options)
        return result

    def _save_files(self, save_directory: str | Path, **kwargs: Any) -> Any:
        """What `save_pretrained` writes; classes add their files here."""
        return super().save_pretrained(save_directory, **kwargs)

    def check_pushable(self) -> None:
        """Refuses what nobody else could load; a class that knows such a case overrides it.

        Raises:
            ValueError: names the reason and a way out.
        """

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str = "50GB",
        tags: str | list[str] | None = None,
        metrics: Any = None,
    ):
        """Pushes in one commit; makes the repository, and the branch `revision`, when missing.

        A repository without `README.md` gets a model card (a processor alone writes none): the one that lies in the
        folder that the model was loaded from, or a new one from the records there, if the weights are the same.

        Args:
            repo_id: `"organisation/name"`.
            commit_message, commit_description: of the commit.
            private: whether a new repository is private; None: the account's default.
            token: True or None: the stored one or `HF_TOKEN`.
            revision: branch to push to; None: `main`.
            create_pr: open a pull request instead.
            max_shard_size: largest file of weights.
            tags: further tags of a new model card.
            metrics: evaluation record or records (`metrics.json`), for a new card; replaces a card that is there.

        Returns:
            `huggingface_hub.CommitInfo`, a string with the address of the commit.

        Raises:
            ValueError: the checkpoint could not be loaded by anybody else.
            OSError: the Hub refused or went away; the message names the repository and what to do. Nothing was
                committed.
        """
        model = self._model_of_card()
        if model is not None:
            model.check_pushable()
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            self.save_pretrained(folder, max_shard_size=max_shard_size)
            _forget_folders(folder / "config.json")
            all_tags = [
                *(getattr(model, "model_tags", None) or ()),
                *([tags] if isinstance(tags, str) else tags or ()),
            ]

            def write_card() -> None:
                if model is not None:
                    _write_card(folder, getattr(model, "name_or_path", ""), repo_id, all_tags, metrics)

            return push_folder(
                folder,
                repo_id,
                commit_message=commit_message or f"Upload {type(self).__name__}",
                commit_description=commit_description,
                private=private,
                token=token,
                revision=revision,
                create_pr=create_pr,
                write_card=write_card,
                replace_card=metrics is not None,
            )

    def _model_of_card(self) -> Any:
        """The model that the card is about; None: there is nothing to say in a card."""
        return self


def take_hub_options(save_directory: str | Path, kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """Takes the keywords of `save_pretrained(folder, push_to_hub=True, ...)` that `push_to_hub` understands.

    transformers would push only what changed during its own part of saving, without the files that `auto_map` names.

    Returns:
        Keywords of `push_to_hub`, or None when nothing is to be pushed.
    """
    if not kwargs.pop("push_to_hub", False):
        return None
    options = {name: kwargs.pop(name) for name in _HUB_OPTIONS if name in kwargs}
    return {"repo_id": Path(save_directory).resolve().name, **options}


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    commit_message: str,
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    repo_type: str = "model",
    ignore_patterns: Sequence[str] = (),
    replaced_folder: str | None = None,
    write_card: Callable[[], None] | None = None,
    replace_card: bool = False,
):
    """Pushes every file of a folder in one commit: a reader of the repository never meets half a checkpoint.

    Args:
        folder, repo_id, commit_message, commit_description, private, token, revision, create_pr: as in `push_to_hub`.
        repo_type: `"model"` or `"dataset"`.
        ignore_patterns: of files to leave out, such as `".work/*"`.
        replaced_folder: `"data"`: what the repository has there and `folder` has not is deleted in the same commit.
        write_card: called to write `README.md` into the folder, where the repository has none.
        replace_card: call it even where there is one.

    Raises:
        OSError: as `push_to_hub`.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.utils import filter_repo_objects

    api = HfApi(library_name="vlm-par-hf", token=token)
    with _naming("creating", repo_id):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True, repo_type=repo_type).repo_id
    if revision is not None and not revision.startswith("refs/pr/"):
        with _naming(f"creating the branch {revision!r} of", repo_id):
            api.create_branch(repo_id, branch=revision, exist_ok=True, repo_type=repo_type)
    if write_card is not None:
        with _naming("reading", repo_id):
            has_card = api.file_exists(repo_id, CARD, revision=revision, repo_type=repo_type)
        if replace_card or not has_card:
            write_card()
    found = sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())
    names = list(filter_repo_objects(found, ignore_patterns=list(ignore_patterns)))
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=Path(folder) / name) for name in names]
    if replaced_folder is not None:
        with _naming("reading", repo_id):
            present = api.list_repo_files(repo_id, revision=revision, repo_type=repo_type)
        stale = {name for name in present if name.startswith(f"{replaced_folder}/")} - set(names)
        operations += [CommitOperationDelete(path_in_repo=name) for name in sorted(stale)]
    with _naming("uploading to", repo_id):
        # One commit; `upload_folder` may split a large folder into several.
        return api.create_commit(
            repo_id,
            operations,
            commit_message=commit_message,
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
            repo_type=repo_type,
        )


@contextmanager
def _naming(doing: str, repo_id: str) -> Iterator[None]:
    """Says in an error of the Hub what was going on and what to do about it."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    try:
        yield
    except (HfHubHTTPError, HTTPError, RuntimeError) as error:
        # The Hub's library wraps what happens to a large file into a RuntimeError.
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        if isinstance(cause, HfHubHTTPError):
            status = cause.response.status_code
            hint = _HINTS.get(status, "the Hub has a problem: push again later" if status >= 500 else "see above")
            cause.append_to_message(f"\n{doing} {repo_id!r} failed ({status}): {hint}. Nothing was committed.")
            raise cause from cause.__cause__
        raise OSError(
            f"{doing} {repo_id!r} failed: the connection to the Hub broke ({type(cause).__name__}: {cause}). "
            "Nothing was committed: push again, files that arrived whole are not sent twice."
        ) from error


def _forget_folders(path: Path) -> None:
    """The folder of this machine that a whole checkpoint's backbone came from is nobody else's business."""
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if Path(config.get("backbone_name") or "").is_absolute():
        atomic_write_json(path, {**config, "backbone_name": None})


def _write_card(folder: Path, source_name: str, repo_id: str, tags: list[str], metrics: Any) -> None:
    """What lies beside the weights on disk speaks for them only while they are the same."""
    source = Path(source_name) if source_name else None
    is_source = source is not None and source.is_dir() and _same_weights(source, folder)
    if is_source and metrics is None and (source / CARD).is_file():
        for name in (CARD, EVAL_RESULTS):
            if (source / name).is_file():
                (folder / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(source / name, folder / name)
        return
    checkpoint = source if is_source else folder
    write_model_card(checkpoint, metrics, out=folder / CARD, name=repo_id, tags=tags, overwrite=True)


def _same_weights(first: Path, second: Path) -> bool:
    names = sorted(path.name for path in first.glob("*.safetensors"))
    if not names or names != sorted(path.name for path in second.glob("*.safetensors")):
        return False
    return all(filecmp.cmp(first / name, second / name, shallow=False) for name in names)
