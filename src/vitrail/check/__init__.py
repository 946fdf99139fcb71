"""Check a data set before training: faults of files, duplicates, leakage, labels, and images that stand out.

Every import from here loads torch; the command's page of help does not.
"""

from vitrail.check.finding import KINDS as KINDS
from vitrail.check.finding import DataFinding as DataFinding
from vitrail.check.result import CheckedData as CheckedData
from vitrail.check.run import check as check
