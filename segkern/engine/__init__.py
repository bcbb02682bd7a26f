"""Training, evaluation, prediction and reports. Needs the `[train]` extra.

`segkern.engine.train.fit`, `segkern.engine.evaluate.evaluate`, `segkern.engine.predict.predict` and
`segkern.engine.report.write_report` are what the command line calls.
"""
