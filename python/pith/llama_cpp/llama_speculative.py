"""Names that programs import. pith decodes without drafts, which change the speed and not the text."""

import numpy as np


class LlamaDraftModel:
    """Proposes tokens."""

    def __call__(self, input_ids, /, **kwargs):
        raise NotImplementedError()


class LlamaPromptLookupDecoding(LlamaDraftModel):
    """Proposes what followed the last tokens when they stood in the text before."""

    def __init__(self, max_ngram_size: int = 2, num_pred_tokens: int = 10):
        self.max_ngram_size = max_ngram_size
        self.num_pred_tokens = num_pred_tokens

    @staticmethod
    def find_candidate_pred_tokens(input_ids, max_ngram_size: int, num_pred_tokens: int):
        ids = np.asarray(input_ids, dtype=np.intc)
        for size in range(min(max_ngram_size, len(ids) - 1), 0, -1):
            windows = np.lib.stride_tricks.sliding_window_view(ids, size)
            for at in np.nonzero((windows == ids[-size:]).all(axis=1))[0]:
                begin, end = at + size, min(at + size + num_pred_tokens, len(ids))
                if begin < end:
                    return ids[begin:end]
        return np.array([], dtype=np.intc)

    def __call__(self, input_ids, /, **kwargs):
        return self.find_candidate_pred_tokens(input_ids, self.max_ngram_size, self.num_pred_tokens)
