"""The report of a verification: its form, its verdict, and what people and programs read. See docs/report.md."""

from atelier.report.judgement import caveats as caveats
from atelier.report.judgement import headline as headline
from atelier.report.judgement import judge as judge
from atelier.report.judgement import stand_ins as stand_ins
from atelier.report.model import AccessMatrix as AccessMatrix
from atelier.report.model import AccessRow as AccessRow
from atelier.report.model import CheckResult as CheckResult
from atelier.report.model import CheckVerdict as CheckVerdict
from atelier.report.model import Metric as Metric
from atelier.report.model import Report as Report
from atelier.report.model import ReportImage as ReportImage
from atelier.report.model import Step as Step
from atelier.report.model import Verdict as Verdict
from atelier.report.model import timestamp as timestamp
from atelier.report.redaction import redact as redact
