//! What a model is: configs, parameter names and shapes, weight files, tokenizers, datasets, batches.
