"""What makes a chest radiograph abnormal beyond the 14 labels: a table of wordings, by kind."""

from rewards.terms import Term

_DIM = r"(?:low|small|decreased|diminished|reduced|shallow|poor|limited|suboptimal|expiratory)"

TERMS = (
    Term(
        "Degenerative change",
        (
            r"degenerat\w+", r"osteophyt\w+", r"\w*spondylo\w+", "spondylitis", r"spur(?:s|ring)\b", "endplate",
            "disc (?:space )?(?:narrowing|disease|height)", r"\w*arthr(?:itis|itic|opathy|osis|opathic)", "facet",
            "hypertrophic (?:change|spur)", r"syndesmophyt\w*", r"dish\b", "idiopathic skeletal", "bridging",
        ),
    ),
    Term(
        "Deformity",
        (
            r"\w*scoli\w+", r"kypho\w*", "lordosis", r"(?:levo|dextro)\w*curv\w+", "curvature", r"wedg\w+",
            r"deform\w+",
            r"compression (?:deformit\w+|fracture)", "pectus", r"height loss|loss of (?:\w+ )?height", "cervical ribs?",
            "bifid", "congenital", r"anomal\w+", "block vert", r"vertebral (?:body )?(?:collapse|compression)",
        ),
        unless=("no prior", "due to patient"),
    ),
    Term(
        "Resection",
        (
            r"resect\w+", "lobectomy", "pneumonectomy", "mastectomy", "amputation", "gastric pull",
            r"absen(?:t|ce of) (?:\w+ ){0,2}(?:breast|rib|clavicle)",
        ),
    ),
    Term(
        "Calcification",
        (
            r"calcifi\w+", r"calcific\b", "calcinosis", r"atheroma\w*", r"athero-?scl\w+", r"arteriosclero\w+",
            "phlebolith", "gallstones?", "cholelithiasis", r"sequela\w*", "granulomatous", "vascular disease",
        ),
    ),
    Term(
        "Aorta",
        (
            r"tortuos\w+", "tortuous", r"unfold\w+", "uncoil", "ectasia|ectatic", r"aneurysm\w*", "dissection",
            r"aort\w+ (?:\w+ ){0,3}(?:elongat\w+|dilat\w+|prominen\w+|enlarg\w+|right[- ]sided)", "coarctation",
            r"(?:dilat\w+|elongat\w+|right[- ]sided|prominen\w+|enlarged|right) (?:\w+ ){0,2}aort\w+",
        ),
    ),
    Term("Hernia", (r"hernia\w*", r"eventrat\w+", "intrathoracic stomach")),
    Term(
        "Emphysema",
        (
            r"emphysem\w*", r"bulla\w*", "bullous", r"blebs?\b", r"copd\b", "obstructive (?:pulmonary|lung|airway)",
            r"hyper-?(?:inflat|expan|lucen|aerat|disten)\w+", r"over-? ?(?:inflat|expan)\w+", "air[- ]trapping",
            r"flatten\w+", r"increased (?:ap|retrosternal|anterior) \w+", r"lucen(?:t|cy|cies)\b", "barrel",
            "air[- ]fluid", "pneumatocele", r"cyst(?:s|ic)?\b", "obstructive disease",
        ),
    ),
    Term(
        "Low volumes",
        (
            rf"{_DIM} (?:\w+ )?(?:volumes?|inspirat\w+)",
            rf"volumes (?:are |remain |is |were )?(?:\w+ )?{_DIM}(?! normal)",
            r"(?:hypo-?|under-?)(?:inflat|aerat|ventil|expan)\w+", r"poor(?:ly)? (?:inspired|inflat\w+)", "crowding",
        ),
    ),
    Term(
        "Diaphragm",
        (
            r"(?:elevat\w+|asymmetr\w+|raised|high|higher) (?:[\w-]+ ){0,4}(?:hemi)?-?diaphragm\w*", "elevation of",
            r"(?:hemi)?-?diaphragm\w* (?:[\w-]+,? ){0,4}(?:elevat\w+|higher|asymmetr\w+|raised|obscur\w+|scallop\w+)",
            r"blunt\w*", r"(?:costophrenic|sulc\w+) (?:[\w-]+ ){0,5}(?:obscur\w+|opaci\w+)", "paralysis",
        ),
    ),
    Term(
        "Hilum or lymph nodes",
        (
            r"\w*adenopath\w+",
            r"(?:enlarg\w+|prominen\w+) (?:\w+ ){0,3}(?:lymph|nodes|hil(?:a|ar|um)\b|azygos|pulmonary arter)",
            r"(?:bi)?hil(?:a|ar|um)\b (?:[\w-]+ ){0,5}(?:prominen\w+|enlarg\w+|full\w*|mass|elevat\w+|retract\w+"
            r"|distort\w+)",
            r"(?:fullness|prominence|asymmetry|retraction|distortion) (?:of|in) (?:the )?(?:\w+ ){0,2}(?:hil\w+"
            r"|pulmonary arter\w+)",
            "pulmonary (?:arterial |venous )?hypertension", "lymphoid enlarg",
            r"pulmonary arter\w+ (?:\w+ ){0,3}(?:prominen\w+|enlarg\w+|dilat\w+)",
        ),
    ),
    Term(
        "Bone",
        (
            r"osteop(?:eni|or)\w*", r"deminerali[sz]\w+", r"sclero(?:tic|sis)\b", r"(?:osteo)?(?:lytic|blastic)\b",
            r"dislocat\w+", r"sublux\w+", "callus", "old trauma", "erosi(?:on|ve)", "avascular", "osteonecrosis",
            "bone island", "bony lesion", "destructive", "schmorl", r"renal osteo\w+",
            "ac(?:romioclavicular)? separation",
        ),
    ),
    Term(
        "Mediastinum",
        (
            r"(?:mediastin\w+|trache\w+|heart) (?:[\w-]+ ){0,5}(?:shift|deviat|displac)\w*",
            r"(?:shift|deviation|displacement) of",
            "pericardial (?:effusion|cyst|fat|calc)", "(?:fat|epicardial) pads?|epicardial fat", r"pneumomediast\w+",
            "goiter", "thyroid", "azygos (?:lobe|fissure)", "mediastinal (?:mass|lymph)", "dextrocardia|situs inversus",
            r"tracheal (?:\w+ )?(?:narrowing|stenosis)",
        ),
        unless=("midline",),
    ),
    Term(
        "Scar",
        (r"scar(?:s|red|ring)?\b", r"cicatri\w+", r"fibro(?:sis|tic)\b", "fibronodular", r"honeycomb\w*"),
        unless=("surgical scar", "pleural scar", "cystic fibrosis"),
    ),
    Term(
        "Airways and interstitium",
        (
            r"interstitial (?:\w+ )?(?:markings|prominence|thickening|changes?|disease|pattern|process"
            r"|coarsening|lung)",
            r"(?:prominen\w+|increased|coarse\w*|thickened|chronic|accentuat\w+|exaggerat\w+) (?:\w+ ){0,4}"
            r"(?:interstiti\w+|markings)", r"(?:interstitial|bronchovascular|lung|reticular) (?:\w+ ){0,2}markings "
            r"(?:\w+ ){0,2}(?:prominent|increased|coarse\w*|thickened|accentuated|exaggerated)",
            r"reticul(?:ar|ation|onodular)\w*",
            r"bronchiect\w+", r"bronchi(?:ol)?itis|bronchitic", r"thicken\w+",
            r"airways? (?:\w+ )?(?:disease|inflamm)", "cuffing",
            r"coarse\w*", "cystic fibrosis", r"sarcoid\w*", r"tubercul\w+", r"histoplasm\w+",
            "pneumoconiosis|silicosis",
            r"asbestos\w*", "miliary", r"chronic (?:\w+ )?(?:lung|interstitial)",
            r"markings (?:are )?(?:\w+ )?(?:increased|prominent)",
            "chronic (?:appearing )?changes?", "parenchymal (?:disease|change)",
            r"(?:prominen\w+|increased|engorged) (?:\w+ ){0,3}(?:bronchovascular|interstiti)",
            "interstiti\\w+ (?:\\w+ )?prominen",
        ),
    ),
    Term(
        "Soft tissue or abdomen",
        (
            "subcutaneous (?:air|gas|emphysema)", "soft tissue (?:air|gas|swelling|mass|prominence|calc)", "ileus",
            "ascites",
            "free (?:intraperitoneal|air|subdiaphragm|abdominal|peritoneal|intra-)", r"pneumoperiton\w+",
            "hepatomegaly", r"\w*splenomegaly",
            r"(?:dilated|distended) (?:\w+ )?(?:bowel|loops|stomach|colon)", "bowel (?:distention|dilat)", "foreign",
            r"bullet\w*|shrapnel|buckshot|pellets?\b|metallic", "radio-?paque", "gynecomastia", "nipple",
            "piercing|jewelry",
            "breast (?:shadow|densit|implant|prosth|attenuat)", "bowel obstruction",
        ),
    ),
)  # fmt: skip
