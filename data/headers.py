"""The headers that real reports and generated ones use, and the section that each opens. One table, three reaches."""

import re
from typing import Literal, NamedTuple

Reach = Literal["anywhere", "line", "title"]


class Header(NamedTuple):
    """Names that open one section."""

    section: str
    reach: Reach
    names: tuple[str, ...]


# Reach: "anywhere" also inside a paragraph; "line" only where a line starts, since the word is common inside sentences;
# "title" only where a line starts, in capitals and with a colon: the name of the examination, behind which many
# reports of MIMIC-CXR put their findings. A blank stands for any white space. Misspelt names are from MIMIC-CXR.
TABLE = (
    Header("both", "anywhere", (
        "findings and impression", "findings and impressions", "findings/impression", "findings / impression",
        "findings & impression", "impression and findings", "impression/findings", "finding and impression",
        "findings and conclusion", "findings/conclusion", "findings and conclusions", "findings and interpretation",
        "检查所见及诊断意见", "超声所见及提示", "超声所见及超声提示",
    )),
    Header("findings", "anywhere", (
        "findings", "finding", "finding(s)", "findngs", "finidngs", "findigns", "findins", "imaging findings",
        "radiographic findings", "radiological findings", "radiology findings", "ultrasound findings",
        "sonographic findings", "chest findings", "description of findings", "imaging notes",
        "超声所见", "检查所见", "影像所见", "影像学所见", "影像表现", "影像学表现", "放射学表现", "超声描述",
        "超声表现", "检查描述", "检查表现", "诊断所见",
    )),
    Header("findings", "line", ("observation", "observations", "description", "所见")),
    Header("impression", "anywhere", (
        "impression", "impressions", "impression(s)", "impresson", "impresion", "imprssion", "imprression",
        "impressoin", "impresssion", "conclusion", "conclusions", "conclusion(s)", "opinion", "opinions",
        "diagnostic impression", "final impression", "overall impression", "radiological impression",
        "ultrasound impression", "impression and recommendation", "impression and recommendations",
        "impression/recommendation", "impression/recommendations", "impression/plan", "impression and plan",
        "conclusion and recommendation", "summary and conclusion", "radiological diagnosis",
        "超声提示", "诊断意见", "超声诊断", "超声印象", "超声结论", "影像诊断", "影像学诊断", "放射学诊断", "诊断印象",
        "检查结论", "检查提示", "诊断结论", "检查意见", "检查诊断", "诊断提示",
    )),
    Header("impression", "line", (
        "interpretation", "diagnosis", "diagnoses", "assessment", "印象", "结论", "诊断", "提示", "意见",
    )),
    Header("indication", "anywhere", (
        "indication", "indications", "indication(s)", "clinical indication", "clinical indications",
        "clinical information", "clinical history", "clinical data", "clinical details", "clinical statement",
        "clinical question", "history", "patient history", "medical history", "reason for exam",
        "reason for examination", "reason for the exam", "reason for this exam", "reason for this examination",
        "reason for study", "reason for the study", "indication for study", "indication for exam",
        "history and indication", "indication/history", "history/indication", "indication and history",
        "clinical indication/history", "临床诊断", "临床病史", "临床资料", "临床症状", "检查目的", "检查原因",
    )),
    Header("indication", "line", ("病史", "主诉")),
    Header("comparison", "anywhere", (
        "comparison", "comparisons", "comparison(s)", "comparision", "comparison studies", "comparison study",
        "comparison exam", "comparison exams", "comparison film", "comparison films", "prior studies", "对比检查",
    )),
    Header("comparison", "line", ("priors", "prior study", "previous studies", "对比", "比较")),
    Header("technique", "anywhere", (
        "technique", "techniques", "technique and comparison", "procedure comments", "检查方法", "检查技术",
        "扫描技术", "扫描方法",
    )),
    Header("technique", "line", ("procedure", "procedures", "protocol", "view", "views")),
    Header("examination", "anywhere", ("examination", "exam", "exam type", "examination type", "type of exam")),
    Header("examination", "line", ("study", "study date", "exam date", "narrative", "检查部位", "检查项目")),
    Header("recommendation", "anywhere", ("recommendation", "recommendations", "recommendation(s)")),
    Header("recommendation", "line", ("follow-up", "follow up", "plan", "建议")),
    Header("notification", "anywhere", ("notification", "notifications")),
    Header("notification", "line", ("communication", "critical result", "critical results")),
    Header("addendum", "anywhere", ("addendum", "final addendum")),
    Header("wet read", "anywhere", ("wet read", "wetread", "wet reading", "wet read version")),
    Header("wet read", "line", ("preliminary read", "preliminary report", "provisional findings impression")),
    Header("final report", "line", ("final report",)),
    Header("comment", "anywhere", ("discussion",)),
    Header("comment", "line", ("comment", "comments", "note", "notes", "limitation", "limitations", "备注", "附注")),
    Header("summary", "line", ("summary", "end of impression", "accession number")),
    Header("signature", "line", (
        "electronically signed by", "signed by", "dictated by", "transcribed by", "interpreted by", "reported by",
        "报告医生", "审核医生", "报告医师", "审核医师", "检查医生",
    )),
    Header("view findings", "title", (
        "chest", "ap chest", "pa chest", "chest ap", "chest pa", "portable chest", "chest radiograph",
        "chest radiographs", "chest x-ray", "ap portable chest", "portable ap chest", "portable chest radiograph",
        "chest, pa and lateral", "chest pa and lateral", "pa and lateral chest", "pa and lateral chest radiograph",
        "pa and lateral chest radiographs", "pa and lateral views of the chest", "ap and lateral chest",
        "ap and lateral chest radiograph", "ap and lateral chest radiographs", "ap and lateral views of the chest",
        "frontal and lateral chest radiograph", "frontal and lateral chest radiographs",
        "frontal and lateral views of the chest", "frontal chest radiograph", "single frontal view of the chest",
        "single ap view of the chest", "single view of the chest", "two views of the chest", "ap view of the chest",
        "upright ap view of the chest", "portable ap view of the chest", "single portable view of the chest",
        "chest, single view", "chest, two views", "supine ap view of the chest", "semi-upright ap view of the chest",
    )),
)  # fmt: skip

OF_NAME = {name: header for header in TABLE for name in header.names}


def names_pattern() -> str:
    """A regular expression of every name, longest first, so that none is cut short by its own beginning.

    Names are grouped by their first two characters: at most of a text's words, one comparison then ends the search.
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(OF_NAME, key=len, reverse=True):
        groups.setdefault(name[:2], []).append(re.escape(name[2:]).replace(r"\ ", r"\s+"))
    return "|".join(f"{re.escape(start)}(?:{'|'.join(ends)})" for start, ends in groups.items())


def header_of(matched: str) -> Header:
    """The row of the table that a name, as it was matched, belongs to."""
    return OF_NAME[" ".join(matched.lower().split())]
