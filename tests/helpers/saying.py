"""lm-eval models that only write, for the tests of tasks."""

from lm_eval.api.model import LM

from unlearn_eval.harness import unedited


class SayingLM(LM):
    """What `says` gives for a document and the prompt that it was asked."""

    def __init__(self, says):
        super().__init__()
        self.says = says

    def loglikelihood(self, requests):
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood

    def generate_until(self, requests):
        return [self.says(request.doc, request.args[0]) for request in requests]


class Before(SayingLM):
    """A model of which both states are known: `says` after the edit, `said` before it."""

    def __init__(self, says, said=None):
        super().__init__(says)
        self.said, self.batches = said, []

    def generate_until(self, requests):
        self.batches.append([request.args[0] for request in requests])
        return super().generate_until(requests)

    def generate_unedited(self, requests):
        if self.said is None:
            return unedited.not_known(self, requests)
        return [{"text": self.said(request.doc, request.args[0])} for request in requests]
