"""Rules that turn windows into verdicts: values in, values out; no clock, no log, no store.

`betting` judges a share of exceedances (latency, memory), `fixed_set` judges accuracy on a fixed evaluation set,
`baseline` makes the limits that both are judged against. A further detector is one more file beside them.
"""
