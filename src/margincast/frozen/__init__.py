"""Training the unembedding on a frozen backbone, exactly: state, steps, flow, attribution, responses of many tokens."""
