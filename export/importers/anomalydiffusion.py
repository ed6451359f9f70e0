"""An AnomalyDiffusion model: LDM checkpoint and learned embeddings, without adapters.

The prompts are painted with the UNet's own estimate. AnomalyDiffusion adds four vectors to the learned ones that a
spatial encoder makes of each mask; a context here is constant, so they are left out.
"""

from collections.abc import Sequence
from pathlib import Path

from stage_rt.files import new_folder
from stage_rt.spec import ModelSpec

from ...training.folder import write_description
from .adapters import read_embeddings, vectors_of
from .assemble import DEFAULTS, Options, ldm_networks, ldm_spec, make_contexts, open_ldm, write_all
from .folder import file_origin, origin

CAPTION = "a photo of a *"
"""The plainest of the texts it was trained with."""


def import_anomalydiffusion(
    ldm: Path, embeddings: Path, folder: Path, *, prompts: Sequence[str] = (), options: Options = DEFAULTS
) -> ModelSpec:
    """Make a model folder; it appears whole or not at all.

    Args:
        ldm: the ``model.ckpt`` that training started from.
        embeddings: the ``embeddings`` file that training left.
        folder: the model folder.
        prompts: names in ``embeddings``; all of them if empty.
        options: what the files do not say.

    Raises:
        InputError: ``folder`` has content.
        CheckpointError: a file is not what it has to be, or not safe.
    """
    with new_folder(folder) as staged:
        checked = open_ldm(ldm, options)
        learned = read_embeddings(embeddings, options.read)
        vectors = vectors_of(embeddings, learned, prompts or sorted(learned), checked.bert.sizes.dim)
        contexts = make_contexts(checked.bert, CAPTION, vectors, options)
        options.say("computing sha256")
        provenance = origin(
            "anomalydiffusion", ldm=file_origin(ldm), embeddings=file_origin(embeddings), caption=CAPTION
        )
        spec = ldm_spec(checked, dict.fromkeys(vectors), contexts, provenance, options)
        write_all(ldm_networks(checked, options), staged, options)
        write_description(staged, spec, contexts)
    return spec
