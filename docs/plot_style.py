"""The style of the tutorials' plots: no background, and colours that read on light and on dark pages."""

from typing import Any

import matplotlib as mpl

INK = "#838387"  # contrast 3.8 on white, 5.0 on furo's dark page


def neutral(gallery_conf: Any, fname: str) -> None:
    """Set the style before each tutorial; sphinx-gallery calls this."""
    mpl.rcParams.update(
        {
            "figure.facecolor": "none",
            "axes.facecolor": "none",
            "legend.facecolor": "none",
            "legend.edgecolor": INK,
            "savefig.transparent": True,
            "savefig.dpi": 120,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": mpl.cycler(color=["#3b8bd0", "#e07b39", "#2f9e69", "#b565c4"]),
            **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor"), INK),
            **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), INK),
        }
    )
