"""An AnoGen model: LDM checkpoint and one learned embedding a defect type, as textual inversion writes them.

AnoGen (Gui et al., ECCV 2024, arXiv:2505.09263) learns nothing else, so that what its authors published is a whole
model: ``logs/<object>_<type>/embeddings.pt`` of their repository.
"""

from collections.abc import Sequence
from pathlib import Path

from pydantic import JsonValue

from stage_rt.errors import CheckpointError
from stage_rt.files import new_folder
from stage_rt.spec import ModelSpec

from ...training.folder import write_description
from .adapters import read_embeddings, vectors_of
from .assemble import DEFAULTS, Options, ldm_networks, ldm_spec, make_contexts, open_ldm, write_all
from .folder import file_origin, origin

FILE = "embeddings.pt"
PLACEHOLDER = "*"
"""The name of an embedding in its file, and the whole text that AnoGen paints with."""
NO_TEXT = "no text"
"""Name of the context of the empty text, which the prompt is weighed against."""


def import_anogen(
    ldm: Path, embeddings: Path, folder: Path, *, prompts: Sequence[str] = (), options: Options = DEFAULTS
) -> ModelSpec:
    """Make a model folder; it appears whole or not at all.

    Args:
        ldm: the ``model.ckpt`` that embeddings were learned on.
        embeddings: folder of a folder for each defect type, whose name becomes the prompt, with an ``embeddings.pt``.
        folder: the model folder.
        prompts: those to take; all of them if empty.
        options: what the files do not say.

    Raises:
        InputError: ``folder`` has content.
        CheckpointError: a file is not what it has to be, or not safe, or a prompt has none.
    """
    files = _files(embeddings, prompts)
    with new_folder(folder) as staged:
        checked = open_ldm(ldm, options)
        vectors = {
            prompt: vectors_of(
                path, read_embeddings(path, options.read), [PLACEHOLDER], checked.bert.sizes.dim
            )[PLACEHOLDER]
            for prompt, path in files.items()
        }
        contexts = make_contexts(checked.bert, PLACEHOLDER, vectors, options)
        contexts[NO_TEXT] = checked.bert.context("")
        options.say("computing sha256")
        learned: dict[str, JsonValue] = {prompt: file_origin(path) for prompt, path in files.items()}
        provenance = origin("anogen", ldm=file_origin(ldm), embeddings=learned, caption=PLACEHOLDER)
        spec = ldm_spec(checked, dict.fromkeys(vectors), contexts, provenance, options, surface=NO_TEXT)
        write_all(ldm_networks(checked, options), staged, options)
        write_description(staged, spec, contexts)
    return spec


def _files(folder: Path, prompts: Sequence[str]) -> dict[str, Path]:
    """The file of each prompt, or of all."""
    found = {path.parent.name: path for path in sorted(folder.glob(f"*/{FILE}"))}
    if not found:
        raise CheckpointError(
            f"`{folder}` has no folder with a file `{FILE}`: name the folder that holds one for each defect type"
        )
    for prompt in prompts:
        if prompt not in found:
            raise CheckpointError(f"`{folder}` has no `{prompt}/{FILE}`, it has {', '.join(found)}")
    return {prompt: found[prompt] for prompt in prompts or found}
