"""The state dict of the authors' pretraining model, as the state of our objective."""

import torch

from rsbackbones.layers.alibi import grid_positions
from rsbackbones.layers.sincos import sincos_embedding
from rsbackbones.models.checkpoint_format import CheckpointFormat
from rsbackbones.models.croma import CHECKPOINT_FORMATS


def _check_positions(table, _config):
    """Compare the stored table of positions [1, N, D] with ours."""
    side = round(table.shape[1] ** 0.5)
    torch.testing.assert_close(
        table[0], sincos_embedding(grid_positions(side, side), table.shape[2]), atol=1e-5, rtol=0
    )


FORMAT = CheckpointFormat(
    modules={
        **{
            f"backbone.{ours}": theirs
            for ours, theirs in CHECKPOINT_FORMATS["croma_pretrain"].modules.items()
        },
        "decoder": "decoder",
        "decoder.embed": "decoder.encoder_to_decoder",
        "decoder.blocks.#.norm1": "decoder.decoder.layers.#.0.input_norm",
        "decoder.blocks.#.attn.qkv": "decoder.decoder.layers.#.0.create_qkv",
        "decoder.blocks.#.attn.proj": "decoder.decoder.layers.#.0.out",
        "decoder.blocks.#.norm2": "decoder.decoder.layers.#.1.input_norm",
        "decoder.blocks.#.mlp.fc1": "decoder.decoder.layers.#.1.net.0",
        "decoder.blocks.#.mlp.fc2": "decoder.decoder.layers.#.1.net.2",
        "decoder.norm": "decoder.decoder.norm_out",
        "decoder.output": "decoder.linear_output",
        "contrast": "global_contrast_loss",
        "contrast.projections.s1": "global_contrast_loss.radar_proj",
        "contrast.projections.s2": "global_contrast_loss.optical_proj",
    },
    derived={"decoder.decoder_pos_embed": _check_positions},
)


def load_published(objective, state):
    """Load the authors' ``state`` into ``objective``, every tensor of it; positions are compared only."""
    for name, check in FORMAT.derived.items():
        check(state[name], None)
    ours = {mine: state[theirs] for theirs, mine in FORMAT.to_native(state).items()}
    ours["contrast.logit_scale"] = ours["contrast.logit_scale"].reshape(1)
    objective.load_state_dict(ours, strict=True)
