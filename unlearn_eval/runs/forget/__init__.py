"""From a request to a certificate: what to forget, a search for an edit that passes a policy, and the proof."""
