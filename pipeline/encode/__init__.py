"""Feature extraction: a teacher over the rows of a store.

1. `windows` cuts the rows into windows of whole shards and finds rows of equal content, which are encoded once;
2. an `engine` (of this process, of several, or `ray_engine`) hands windows to encoders, one a device;
3. `encoder` decodes or tokenises beside the model, in batches of little padding;
4. `extraction` puts the features back in the order of rows and writes each shard's part.

Rounding may depend on what else is in a batch. So the batches are a function of the whole store, never of what is
still missing, nor of the engine: a resumed, repaired or distributed store is byte-identical to an undisturbed one.
(After a change of the source, the parts of shards that did not change are kept, and may differ in their last bits from
those of a store made anew.)
"""

from pipeline.encode.engine import Engine, open_engines
from pipeline.encode.extraction import extract_features

__all__ = ["Engine", "extract_features", "open_engines"]
