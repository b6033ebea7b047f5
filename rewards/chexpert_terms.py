"""What mentions each of the 14 CheXpert labels: a table of wordings.

The labels are those of Irvin et al., CheXpert, AAAI 2019; the wordings are this project's own.
"""

from rewards.terms import Term

LABELS = (
    "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation", "Pneumonia",
    "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices", "No Finding",
)  # fmt: skip

# Words between a structure and what is said of it; they hand nothing over another statement.
_GAP = r"(?:(?!and\b|or\b|normal|without|but\b|unremarkable|within)[\w-]+,? ){0,7}?"
_FINE_GAP = r"(?:(?!enlarge|abnormal|but\b|borderline|upper|top\b|mildly|widen|prominen)[\w-]+,? ){0,9}?"
_HEART = r"(?:heart|cardiac|cardiopericardial|cardio-?mediastinal)"
_BIG = r"(?:enlarge\w*|prominen\w+|increased(?! (?:density|opacity|markings))|globular|large\b)"
_WIDE = r"(?:widen\w*|enlarge\w*|prominen\w+|broad\w*)"
_LUNG = r"(?:lungs?|lobe|base|apex|hilum|zone|lingula|midlung|hemithorax)"
_CENTRAL = r"(?:svc|vena cava|cavo-?atrial|atri(?:um|al)|caval|carina|brachiocephalic|stomach|duodenum|ventricle)"

TERMS = (
    Term(
        "Enlarged Cardiomediastinum",
        (
            rf"mediastin\w+ {_GAP}{_WIDE}", rf"{_WIDE} {_GAP}mediastin\w+", rf"cardio-?mediastinal {_GAP}{_BIG}",
            rf"{_BIG} {_GAP}cardio-?mediastinal", "mediastinal (?:fullness|mass)",
            r"(?:widening|enlargement|prominence|fullness) of the (?:\w+ )?mediastin\w+",
            r"paratracheal (?:\w+ )?(?:prominence|fullness|widening|thickening)",
        ),
        unless=("lymph", "aort", "heart"),
    ),
    Term(
        "Enlarged Cardiomediastinum",
        (
            rf"(?:cardio-?)?mediastin\w+ {_FINE_GAP}(?:normal|unremarkable|within)",
            r"normal (?:\w+ ){0,2}(?:cardio-?)?mediastin\w+",
        ),
        value=0,
    ),
    Term(
        "Cardiomegaly",
        (
            "cardiomegaly", "megalocardia", rf"{_HEART} {_GAP}{_BIG}",
            rf"{_BIG} {_GAP}{_HEART}(?: (?:silhouette|shadow|size|contour))?(?! fail| pulm)",
            rf"enlargement of the (?:\w+ )?{_HEART}", r"(?:bi)?ventric\w+ (?:enlargement|prominence|hypertrophy)",
            rf"(?:atrial|atrium) {_GAP}enlarge\w*", r"enlarged (?:left|right) (?:atri|ventric)\w+",
        ),
        unless=("mediastinal lymph", r"hil(?:a|ar|um)\b", "fat pad"),
    ),
    # Borderline is the smallest grade of a large heart, as the coding has it, and no doubt about a large one.
    Term("Cardiomegaly", (rf"borderline {_GAP}{_HEART}", rf"{_HEART} {_GAP}borderline")),
    Term(
        "Cardiomegaly",
        (
            rf"{_HEART} (?!valve|enlarg){_FINE_GAP}(?:normal|unremarkable|within|not enlarged)(?! variant)",
            rf"{_HEART} {_GAP}(?:upper|top)[- ](?:limits?|normal)", "normal (?:\\w+ ){0,2}(?:heart|cardi)",
        ),
        value=0,
    ),
    # Scars and coarse markings are findings of other_terms: the coding of the real reports keeps them apart.
    Term(
        "Lung Opacity",
        (
            r"opaci\w+", "opaque", r"infiltrat\w+", "ground[- ]glass", r"ggos?\b", r"hazy|haziness|haze\b",
            r"air[- ]?space (?:disease|process|change|abnormalit)\w*", rf"densit(?:y|ies) (?:\w+ ){{0,8}}{_LUNG}",
            r"(?:increased|focal|patchy|basilar|linear|streaky|subtle|parenchymal|lung|lobe|nodular"
            r"|rounded|round|base|vague|ill[- ]defined|interstitial|asymmetric|added|pulmonary|calcific|calcified"
            r"|bandlike|abnormal|residual|infrahilar|perihilar|suprahilar|retrocardiac|mass) (?:\w+ ){0,2}densit\w+",
        ),
        unless=(
            r"densit\w+ (?:of the )?(?:bone|breast)", "bone densit", r"opaci\w+ of the (?:sinus|bowel)", "breast",
            "bowel", "contrast",
        ),
    ),
    Term(
        "Lung Lesion",
        (
            r"nodul\w+", r"masses\b", r"mass\b(?![- ](?:effect|like effect|density))", r"granuloma(?:s|ta)?\b",
            "granulomatous calcification", r"lesions?\b",
            r"tumou?rs?\b", r"cavit(?:y|ies|ation|ary)\b", r"neoplas\w+", "carcinoma", r"malignan\w+", r"metasta\w+",
            "lung cancer", r"lump\b", "mass density",
        ),
        unless=(
            r"(?:breast|chest wall|bone|bony|osseous|lytic|blastic|sclerotic|rib|skeletal|thyroid|soft tissue|thoracic"
            r"|body|abdominal|mediastinal|adrenal|destructive|vertebral|humer\w+|scapula) (?:\w+ )?(?:mass"
            r"|lesion|cavit)",
            "nipple", "body habitus", "(?:pleural|chest) cavit", "mediastinal (?:mass|nod)", "nodular contour",
        ),
    ),
    Term(
        "Edema",
        (
            r"(?<!soft tissue )(?<!subcutaneous )edema\w*", r"congestion\b", "fluid overload|volume overload",
            r"(?:vascular\w*|vessels?|vasculature) (?:\w+ ){0,3}(?:congest\w+|engorge\w+|cephaliz\w+|redistribut\w+"
            r"|plethora|indistinct\w*)", r"(?:pulmonary )?(?:vascular|venous) prominence", "cephalization",
            r"prominen\w+ of (?:the )?(?:\w+ ){0,2}(?:pulmonary )?vascula\w+",
            "congestive (?:heart )?(?:failure|change)",
            r"(?:increased|prominent|engorged) (?:\w+ ){0,2}(?:lung|pulmonary|central) vascula\w+", "kerley",
            r"(?:lung|pulmonary|central) vascula\w+ (?:\w+ ){0,3}(?:prominent|increased|engorged)", r"chf\b",
            r"heart failure", "(?:cardiac|left ventricular|lv) (?:failure|decompensation)", "decompensat",
            "septal lines",
        ),
    ),
    Term("Consolidation", (r"consolidat\w+", r"air bronchogram\w*")),
    Term(
        "Pneumonia",
        (r"pneumonias?\b", r"pneumonic\b", "pneumonitis", "bronchopneumonia", "infection", "infectious", "abscess"),
        unless=(
            "granulomatous (?:lung )?infect", "sequela", r"\bhiv\b", "skin", r"tubercul\w+ (?:infect|pneum)",
            r"(?:old|prior|previous|remote|healed|fungal|chronic|histoplasm\w+) (?:\w+ ){0,2}(?:infect|pneum)",
        ),
    ),
    Term(
        "Atelectasis",
        (
            r"atelecta\w+", r"volume loss", r"loss of (?:\w+ )?volume",
            r"(?:lung|lobe|lobar|lingular|partial|segmental|middle lobe) collapse\b",
            r"collapsed? (?:of the )?(?:\w+ ){0,2}(?:lung|lobe)",
        ),
        unless=("vertebra", "compression"),
    ),
    Term("Pneumothorax", (r"(?:hydro-?|ha?emo-?)?pneumothora\w+", r"ptx\b")),
    Term(
        "Pleural Effusion",
        (
            r"effusions?\b", r"(?:pleural|fissural|loculated|subpulmonic) (?:\w+ )?fluid\b", r"hydropneumothora\w+",
            r"fluid (?:\w+ ){0,4}(?:fissures?|pleural space|costophrenic)", r"ha?emothora\w+", r"hydrothora\w+",
            "empyema", r"ha?emopneumothora\w+",
        ),
        unless=(r"pericardial (?:\w+ )?effusion", "joint effusion", "knee"),
    ),
    Term(
        "Pleural Effusion",
        (r"pleural (?:spaces?|surfaces?) (?:are|is|appears?) (?:\w+ )?(?:clear|normal|unremarkable)",),
        value=0,
    ),
    Term(
        "Pleural Other",
        (
            r"(?:pleural|pleuro-?parenchymal|pleural-parenchymal|pleuropericardial) (?:[\w-]+,? ){0,3}?"
            r"(?:thicken\w*|plaques?|scar\w*|calcifi\w+|disease|fibrosis|reaction|caps?\b|capping|tag|adhesions?|lesion"
            r"|mass|nodul\w+|abnormality|change\w*)", r"(?:bi)?apical (?:[\w-]+ )?(?:thicken\w*|caps?\b|capping)",
            r"(?:thicken\w*|scarring|calcifi\w+) (?:of|along|in|within) (?:the )?(?:\w+ ){0,2}(?:pleura\w*|fissure)",
            r"(?:fissural|fissure) thicken\w*", r"fibrothora\w*", "mesothelioma", "pleural[- ]based", "pleuritis",
            "pleurodesis", "pleural-parenchymal",
        ),
    ),
    Term("Fracture", (r"fractur\w*",), unless=("catheter", "wire", r"\blead", "sternotomy", "hardware")),
    Term(
        "Support Devices",
        (
            r"pacemaker\w*", r"pacer\b", r"(?:leads|electrodes)\b(?! to)",
            r"(?:pacing|pacemaker|icd|ventricular|atrial) (?:lead|wire)",
            r"cardioverter", r"catheter\w*", r"tubes?\b",
            r"(?:ett|ngt|ogt|cvc|cvl|picc|lvad|iabp|aicd|icd|ecmo|tips)\b",
            r"(?:central|venous|picc|subclavian|jugular|ij|arterial|dialysis|port|monitoring"
            r"|support) (?:\w+ )?lines?\b",
            "lines and tubes", "swan[- ]ganz", "tracheostomy", r"defibrillator\w*", r"prosthe\w+", r"port-?a-?cath\w*",
            r"(?:right|left|chest|infusion|power|sided|subclavian|venous) ?port\b", "mediport", r"stents?\b",
            r"(?:sternotomy|sternal|cerclage) (?:wires?|sutures?|clips)", r"wires?\b",
            "valve (?:replacement|prosthesis|repair)",
            r"(?:prosthetic|artificial|replacement|mechanical|bioprosthetic) (?:\w+ )?valves?\b", "annuloplasty",
            r"clips?\b", r"staples?\b", r"sutures?\b", r"suture (?:line|material)", "hardware", r"arthroplast\w+",
            r"screws?\b", r"(?:spinal|fixation|fusion|metallic|orthopedic|side|surgical) (?:\w+ )?(?:rods?|plates?)\b",
            r"implants?\b", "implanted", r"devices?\b", r"\w*stimulator", "ventricular assist", "balloon pump",
            r"drains?\b", "pigtail", r"cannula\w*", r"embolization (?:coil|material)", r"coils?\b", "loop recorder",
            r"(?:ivc|vena cava|caval) filter", "occluder", r"(?:joint|shoulder|hip) replacement",
            "(?:lap|gastric)[- ]?band",
            r"(?:vp|ventriculoperitoneal|ventricular) shunt|shunt (?:tubing|catheter)", r"(?:vertebro|kypho)plasty",
            rf"tip (?:[\w-]+ ){{0,8}}{_CENTRAL}", r"(?:monitor|ekg|ecg) (?:leads|wires)", "fixation", "bone anchor",
            "pulse generator", "implantable", r"\w+ generator",
        ),
            ),
)  # fmt: skip
