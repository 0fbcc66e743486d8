"""What mail systems write when a mail did not arrive: their words, as tables.

Only words: how they are put together to a reading is in bounce_prose. Collected from the texts that qmail,
Exim, Postfix, Sendmail, Courier, OpenSMTPD, Exchange, Domino, GroupWise, IMail, MDaemon, James, Communigate
and the big mailbox providers send, and from their translations. All are matched against lower case with
single blanks.
"""

import re


def _any(*phrases: str) -> re.Pattern[str]:
    return re.compile("|".join(phrases))


DAEMON = _any(
    r"mail(?:er)?[ _.-]?daemon", r"post[ _-]?master", r"mdaemon",
    r"mail[ _.-]?(?:delivery|system|router|admin|server|robot)", r"mail(?:er)? administrator",
    r"delivery (?:sub)?(?:system|agent|service|notif|status)", r"\bbounces?\b", r"system administrator",
    r"systemadministrator", r"^daemon@", r"\bmmdf\b", r"microsoft outlook", r"microsoft ?exchange",
    r"mail transport agent", r"e?smtp[ _.-]?(?:server|gateway|daemon)", r"postoffice", r"mail-?gateway",
    r"mailgate",
)  # fmt: skip
"""Senders that are programs: their address or name."""

FAILURE_SUBJECT = _any(
    r"kan inte lever", r"kan ikke lever", r"kézbesíthetetlen", r"nelivrabil", r"δεν παραδόθηκε",
    r"ไม่สามารถส่ง",
    r"لا يمكن تسليم", r"לא ניתן למסור", r"không gửi được",
    r"^rejected: ", r"automatically rejected",
    r"message you sent.{0,20}(?:blocked|rejected)",
    r"failure notice", r"returned (?:mail|e-?mail|message|to sender)", r"undeliver",
    r"not? deliver(?:ed|able)", r"non-?deliver",
    r"deliver(?:y|ing).{0,40}(?:fail|error|problem|unsuccess|delay|abort|notification|report|status)",
    r"fail(?:ed|ure|ing)?.{0,20}\bdeliver", r"(?:could|can) ?not be (?:sent|delivered)", r"could not send",
    r"couldn'?t be (?:sent|delivered)", r"unable to (?:deliver|send)",
    r"mail (?:system )?(?:error|failure|failed|problem)", r"(?:message|mail) (?:status|delayed|rejected)",
    r"user unknown", r"unknown (?:user|address|recipient)", r"mailbox (?:is )?full", r"delayed mail",
    r"bounced? mail", r"warning: message", r"delivery (?:failure|failed)",
    r"mail (?:was )?(?:not |un)deliver", r"\bndr\b", r"unzustellbar", r"nicht zu(?:ge)?stell",
    r"zustell(?:ung|bericht|fehler)", r"unzustellbare", r"verzögert", r"non remis", r"non distribu",
    r"[ée]chec.{0,30}(?:remise|livraison|envoi|distribution)", r"notification d'[ée]tat",
    r"no se (?:puede|pudo|ha podido) entreg", r"no entreg", r"devuelto", r"error.{0,20}entrega",
    r"estado de entrega", r"mancat[oa] (?:recapito|consegna)", r"non recapitabile",
    r"impossibile (?:recapitare|consegnare)", r"notifica.{0,20}recapito", r"n[ãa]o (?:foi )?entreg",
    r"n[ãa]o (?:p[ôo]de|foi poss[íi]vel)", r"falha.{0,20}entrega", r"devolvid", r"onbestelbaar",
    r"niet (?:te )?(?:bezorg|afgelever|bestel)", r"nie (?:mo[żz]na|dostarcz)", r"niedostarcz",
    r"olevererbar", r"kunde inte levereras", r"ikke (?:lever|bli levert)", r"uleveret",
    r"ei voitu toimittaa", r"nedoru[čc]", r"nelze doru[čc]it", r"iletilemedi", r"teslim edilemedi",
    r"недостав", r"не достав", r"не удалось", r"возврат", r"配信(?:不能|でき|エラー|状態|失敗|されませ)",
    r"未配信", r"送信(?:エラー|でき|失敗)", r"エラー(?:メール|通知)", r"返送", r"退信", r"退件",
    r"无法(?:送|投|传|发)", r"無法(?:傳|送|投)", r"投递失败", r"未送达", r"未传递", r"반송",
    r"배달 ?(?:실패|되지|할 수)", r"전송 ?실패", r"전달되지", r"발송 ?실패",
)  # fmt: skip
"""Subjects of reports; never sought behind "Re:" and the like, which are people's."""

FAILURE = _any(
    r"not been delivered", r"was blocked by",
    r"(?:could|can|would|will) ?not be (?:delivered|sent|reached|processed|relayed|completed)",
    r"can(?:no|')t be (?:delivered|sent)", r"couldn'?t be (?:delivered|sent|found|reached)",
    r"wasn'?t (?:able to deliver|delivered)", r"(?:was|were) not (?:able to deliver|delivered)",
    r"(?:could|can) ?not (?:deliver|send)", r"couldn'?t (?:deliver|send)",
    r"unable to (?:deliver|send|relay|complete)", r"undeliver(?:able|ed)", r"not delivered", r"nondeliver",
    r"non-?deliver",
    r"deliver(?:y|ing) (?:of |to )?.{0,60}(?:failed|failure|problems?|errors?|aborted|unsuccessful)",
    r"failed to (?:deliver|send)", r"permanent (?:fatal )?(?:error|failure)", r"fatal errors?",
    r"unrecoverable error", r"had (?:delivery )?(?:problems|errors)", r"did not (?:reach|receive)",
    r"didn'?t reach", r"returned (?:mail|to sender|to you)", r"returning (?:your )?(?:mail|message)",
    r"mailbox(?: is| was)? (?:full|unavailable|not found|over)", r"over (?:its |the )?quota",
    r"quota exceeded", r"exceeds? (?:allowed|the|its|mailbox)",
    r"user (?:is )?(?:unknown|not found|doesn'?t)", r"unknown (?:user|local|recipient|address)",
    r"no such (?:user|recipient|address|mailbox|person)",
    r"(?:user|recipient|address|mailbox|account) does ?n[o']t exist", r"not listed in",
    r"transcript of session", r"failed (?:recipient|address)", r"(?:address|recipient)(?:\(?e?s\)?)? failed",
    r"error delivering", r"not accepting", r"(?:was|been|automatically|is) rejected",
    r"rejected (?:recipient|your|by)", r"receiver not found",
    r"encountered (?:delivery )?(?:problems|errors)", r"trouble delivering",
    r"invalid (?:recipient|address|final)", r"not recognized", r"cannot be reached", r"failed permanently",
    r"were (?:not reached|affected)", r"group you tried to contact",
    r"nicht (?:zugestellt|erreicht|ausgeliefert|übermittelt)", r"unzustellbar",
    r"zustellung.{0,60}(?:fehlgeschlagen|nicht)", r"fehler", r"n['’]a pas (?:pu|été)", r"n['’]ont pas pu",
    r"non (?:remis|distribué)", r"échec", r"impossible de (?:remettre|distribuer|livrer)",
    r"no se (?:ha podido|pudo|puede|han? entregado)", r"no (?:ha sido|fue) entregado",
    r"error en la entrega", r"no ha podido", r"impossibile (?:recapitare|consegnare)",
    r"non (?:è stato|è stata|può essere|ha raggiunto|recapitabile|consegnat)",
    r"n[ãa]o (?:p[ôo]de|foi|pode) ", r"falha (?:na|ao|de)",
    r"niet (?:worden|kunnen|afgeleverd|bezorgd|bereikt)", r"onbestelbaar",
    r"nie (?:można|mogła|może|został|udało)", r"kunde inte (?:levereras|nå)", r"kunne ikke (?:leveres|nå)",
    r"ei voitu", r"nelze doru[čc]it", r"nedoru[čc]", r"iletilemedi", r"teslim edilemedi",
    r"не (?:был[аои]? |может быть |могут быть )?доставлен", r"не удалось доставить", r"не может быть",
    r"недоставлен", r"не существует", r"配信(?:でき|不能|されま|に失敗)", r"届(?:き|けられ|ける)",
    r"送信(?:でき|に失敗|されま)", r"配送(?:でき|に失敗)", r"エラー", r"存在しま", r"見つかりま",
    r"宛先不明", r"问题", r"問題が", r"无法(?:送|投|传|发|找)", r"無法(?:傳|送|投)", r"退(?:信|回)", r"失败",
    r"不存在", r"未能", r"배달(?:되지|하지|할 수)", r"전(?:송|달).{0,6}(?:실패|되지|할 수|하지)",
    r"존재하지", r"반송",
)  # fmt: skip
"""Sentences that say a mail did not arrive; believed only of a sender or under a subject from above."""

DELAY = _any(
    r"delivery incomplete", r"gmail will retry",
    r"warning message only", r"has been delayed", r"(?:is|was|are|been) delayed", r"delayed for",
    r"delayed mail", r"(?:not|n[o']t) yet been delivered", r"has not been delivered yet",
    r"still undelivered", r"still being retried",
    r"will (?:be retried|retry|keep trying|continue to try|try again|continue trying|be attempted)",
    r"do not need to re-?send", r"delivery attempts will continue", r"temporary failure report",
    r"just a warning", r"no action is required on your part", r"being delayed",
    r"we(?:'ll| will) (?:keep|continue|retry)", r"delivery (?:has been |is )?(?:delayed|deferred)",
    r"delivery delay", r"retry (?:sending|delivery|will)", r"status notification \(delay",
    r"not been able to deliver your message (?:yet|for)", r"verzögert", r"noch nicht zugestellt", r"retardé",
    r"retrasad", r"ritard", r"atrasad", r"vertraagd", r"opóźni", r"задерж", r"遅延", r"遅れ", r"延迟",
    r"延遲", r"지연",
)  # fmt: skip

FINAL = _any(
    r"permanent(?:ly)? (?:error|fail|fatal|reject)", r"giv(?:en|ing) up", r"not going to try again",
    r"(?:could|can)(?: ?not| not) be delivered for", r"will be deleted", r"no further",
    r"failed permanently", r"will not (?:try|be retried|retry)", r"has been (?:returned|removed)",
    r"is being returned", r"retry timeout exceeded", r"too long", r"been bounced", r"fatal errors",
)  # fmt: skip
"""Words that make a report final even where it speaks of delays as well."""

SUCCESS = _any(
    r"successful", r"(?:was|were|been|is|are) (?:delivered|relayed|received)", r"\(success\)", r"\(relay\)",
    r"erfolgreich", r"zugestellt", r"remis(?:e)? avec succ", r"entregado correctamente", r"recapitato",
    r"(?<!не )(?<!недо)доставлено", r"配信済み", r"配信されました", r"已送达", r"성공",
)  # fmt: skip
"""Words of a report on a mail that arrived; believed only where no sentence says failure."""

POSTFIX_RETRIES = "it will be retried until"

_RETURNED = r"(?:original|returned|unsent|undelivered|old|rejected|transmitted)"
_MAIL = r"(?:message|mail|e-?mail|text)"
_OF_MAIL = r"(?:text|headers?|header fields|body|content|data)"
_FOLLOWS = r"(?:follows?|is|below|attached|was|begins|info\w*)"
COPY = _any(
    r"^[-=*_\s]*(?:below|beneath|under) (?:this|the next) line is a copy", r"this is a copy of",
    r"(?:below|attached|here|following) is (?:a|the) copy",
    rf"^[-=*_ ]*(?:the )?{_RETURNED} ?{_MAIL}(?: ?{_OF_MAIL})?(?: {_FOLLOWS})*[:. ]*[-=*_]*:?$",
    r"^[-=*_ ]*(?:original|returned|unsent|undelivered|non-?delivered) (?:message|mail)\b.{0,20}[-=*_]{2,}",
    r"(?:message|mail) (?:headers?|text) follows?", r"included is a copy",
    r"^[-=* ]*a copy of (?:the|your) (?:original )?(?:message|mail)",
    r"the headers? of the (?:original )?message", r"returned mail follows", r"start of returned",
    r"^[-=* ]*original message headers", r"your message reads", r"here is your returned mail",
    r"-- the header",
    r"copy of (?:the|your) (?:original )?message(?: is|'s headers)? ?(?:attached|below|follows|headers?|,)",
    r"^[-=* ]*copy of (?:the|your) (?:original )?message:?", r"your (?:original )?message follows",
    r"^[-=* ]*(?:message|mail) (?:contents?|headers?)[: ]*[-=*]*$", r"^-+ ?message header",
    r"kopie (?:der|ihrer) (?:original)?nachricht",
    r"(?:ursprüngliche|original)[ -]?nachricht(?:enkopf|enheader)?", r"en-?t[êe]tes? (?:de|du) message",
    r"message (?:d'origine|original)", r"mensaje original", r"encabezados? (?:de|del) mensaje",
    r"messaggio originale", r"intestazioni (?:del )?messaggio", r"mensagem original",
    r"cabeçalhos? (?:da|de) mensagem", r"oorspronkelijke bericht", r"исходно(?:е|го) (?:сообщени|письм)",
    r"заголовк", r"元のメッセージ", r"オリジナル(?:の)?(?:メッセージ|メール)", r"原始(?:邮|郵)件",
    r"원본 (?:메시지|메일)",
)  # fmt: skip
"""Lines after which the returned mail stands."""

_WHICH = r"(?:failed |intended |undeliverable |invalid |unknown |original |final )"
_PLURAL = r"(?:s|es|\(s\)|\(es\))"
LABEL = _any(
    rf"{_WHICH}?(?:recipient|addressee|address|mailbox){_PLURAL}?(?: address| name| is| not found)?",
    r"addressed to", r"error-for", r"undeliverable to", r"(?:unknown|no such|invalid)(?: local)? user",
    r"user unknown", r"receiver not found", r"user mailbox exceeds allowed size", r"user'?s mailbox is full",
    r"mailbox (?:is )?full", r"delivery failed(?: .{1,20})?", r"account (?:is )?(?:disabled|full)",
    r"invalid final delivery userid", r"(?:deliver(?:ed|y)?|sent|message|mail|relay) to", r"host unknown",
    r"\buser",
    r"(?:unable|failed|impossible|could not|cannot) (?:to )?"
    rf"(?:deliver|send)(?: (?:your |the )?{_MAIL})?(?: to)?",
    r"expanded from", r"empfänger(?:adresse)?", r"destinataires?", r"destinatari[oi]s?", r"ontvangers?",
    r"получател[ьи]", r"adresat", r"mottagare", r"宛先(?:アドレス)?", r"送信先", r"受信者",
    r"收件人(?:地址)?", r"受信アドレス", r"받는 ?사람", r"수신자",
)  # fmt: skip
"""What stands right before a failed recipient on its line."""

CONTACT = _any(
    r"contact", r"please (?:send|mail|e-?mail|forward|write|reply|report)",
    r"(?:further|more) (?:assistance|information|help)", r"questions?", r"write to", r"e-?mail us",
    r"report this", r"https?:", r"problems? to", r"unsubscribe", r"assistance", r"reply to",
    r"\bfrom\b(?!:?\s*<?\s*$)", r"sender", r"kontakt", r"wenden", r"contacte",
)  # fmt: skip
"""What stands before addresses of people who are said to help."""

NEVER = _any(
    r"^\W*(?:from|sender|reply-to|cc|bcc|return-path|mail from|von|de|da|from address|x-\S+)\s*[:;]",
    r"^\W*(?:message-id|envelope-from|delivered-to|received|by|orig(?:inal)?-?sender)\s*[:;]",
    r"mail from:?\s*<?$",
)  # fmt: skip

ROLE = re.compile(
    r"(?:postmaster|mailer-daemon|mailerdaemon|mail-daemon|abuse|hostmaster|webmaster|help|helpdesk|support|"
    r"admin|administrator|noreply|no-reply|root)\Z"
)

PEOPLES_SUBJECT = re.compile(
    r"\s*(?:re|fwd?|fw|aw|wg|tr|rv|antw|sv|vs|odp|ynt|res|enc|i|r)(?:\[\d+\])?\s*:", re.IGNORECASE
)
