"""An lm-eval model that only writes, for the tests of tasks."""

from lm_eval.api.model import LM


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
