"""Gates that text passes before anything is trained on it.

`check` looks at a corpus and gives a report; `checked` does so as a step of the store, so that a corpus is looked at
once. `docs/data-gates.md` tells what each gate measures, and what it was seen to find.
"""

from gptmodel.datagates.check import check
from gptmodel.datagates.report import Finding, Offender, Report, markdown
from gptmodel.datagates.step import checked, previous_of, report_of

__all__ = ["Finding", "Offender", "Report", "check", "checked", "markdown", "previous_of", "report_of"]
