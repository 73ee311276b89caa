"""ncflow in anyone's loop: features of plain PyTorch, Lightning and transformers, each imported on demand.

`ncflow.integrations.lightning` and `ncflow.integrations.transformers` need those libraries.
"""

from ncflow.integrations.collecting import CollectedFeatures, collect_features

__all__ = ["CollectedFeatures", "collect_features"]
