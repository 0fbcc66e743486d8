"""Rules for reading replies: which stage, code, enhanced code and words mean what.

Data only, first match wins; the last rows are the general rule by stage. A row without a reaction
follows the code's first digit. Patterns run on hostile text: they have no nested repetition, and
every gap in them is bounded. Each row names where it comes from: a page where the vendor describes
the code, a standard, or "seen" for wordings widely quoted. Wordings are general knowledge of 2026-11,
not checked one by one against those pages.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from gobii_email.domain.readings import AccountState, Reaction, Scope
from gobii_email.domain.smtp_replies import Stage

_GOOGLE = "support.google.com/a/answer/3726730"
_MICROSOFT = "learn.microsoft.com: NDR codes in Exchange Online"
_MICROSOFT_SUBMIT = "learn.microsoft.com: smtp-submission-improvements"
_MICROSOFT_ERRORS = "learn.microsoft.com: continuous-error-throttling-smtp-auth-submissions"
_SES = "docs.aws.amazon.com/ses/latest/dg/troubleshoot-smtp.html"
_ZOHO = "zoho.com/mail/help/adminconsole/rates-and-limits.html"
_ENHANCED = "RFC 3463, IANA registry of enhanced status codes"


@dataclass(frozen=True, slots=True)
class Rule:
    """One row. Empty conditions match anything; `unless` vetoes; `codes` are codes or first digits."""

    category: str
    source: str
    stages: frozenset[Stage] = frozenset()
    codes: tuple[str, ...] = ()
    enhanced: re.Pattern[str] | None = None
    text: re.Pattern[str] | None = None
    unless: re.Pattern[str] | None = None
    reaction: Reaction | None = None
    hold: AccountState | None = None
    hold_for: timedelta | None = None
    scope: Scope | None = None
    advice: str = ""
    retry_after: timedelta | None = None

    def matches(self, stage: Stage, code: int, enhanced: str, text: str) -> bool:
        """Whether this row is about such a reply; `text` in lower case."""
        return (
            (not self.stages or stage in self.stages)
            and (not self.codes or str(code).startswith(self.codes))
            and (self.enhanced is None or self.enhanced.fullmatch(enhanced) is not None)
            and (self.text is None or self.text.search(text) is not None)
            and (self.unless is None or self.unless.search(text) is None)
        )


def _any(*alternatives: str) -> re.Pattern[str]:
    return re.compile("|".join(alternatives))


def _at(*stages: Stage) -> frozenset[Stage]:
    return frozenset(stages)


def _held(
    category: str,
    source: str,
    hold: AccountState,
    *,
    codes: tuple[str, ...] = ("5",),
    stages: frozenset[Stage] = frozenset(),
    enhanced: re.Pattern[str] | None = None,
    text: re.Pattern[str] | None = None,
    unless: re.Pattern[str] | None = None,
    advice: str = "",
    reaction: Reaction = Reaction.HOLD_ACCOUNT,
) -> Rule:
    """The account is stopped until a person acts; no mail fails."""
    return Rule(
        category, source, stages, codes, enhanced, text, unless, reaction, hold, None, Scope.ACCOUNT, advice
    )


def _slower(
    category: str,
    source: str,
    *,
    codes: tuple[str, ...] = (),
    stages: frozenset[Stage] = frozenset(),
    enhanced: re.Pattern[str] | None = None,
    text: re.Pattern[str] | None = None,
    unless: re.Pattern[str] | None = None,
    hold: AccountState | None = None,
    hold_for: timedelta | None = None,
    scope: Scope = Scope.ACCOUNT,
    advice: str = "",
    retry_after: timedelta | None = None,
) -> Rule:
    """A pace or an allowance was exceeded; the classification adds the usual hold where none is given."""
    slow = Reaction.SLOW_DOWN
    return Rule(
        category,
        source,
        stages,
        codes,
        enhanced,
        text,
        unless,
        slow,
        hold,
        hold_for,
        scope,
        advice,
        retry_after,
    )


_SESSION = _at(Stage.CONNECT, Stage.TLS, Stage.EHLO)
_MESSAGE = _at(Stage.DATA, Stage.DOT)
_HOUR = timedelta(hours=1)
_QUARTER = timedelta(minutes=15)
_CONFIG, _AUTH = AccountState.CONFIG_NEEDED, AccountState.AUTH_NEEDED
_BLOCKED, _QUOTA, _LIMITED = AccountState.BLOCKED, AccountState.QUOTA, AccountState.LIMITED

_REPUTATION = (
    r"dnsbl|\brbl|\w+rbl\b|spamhaus|spamcop|barracuda|sorbs|block ?list|blacklist"
    r"|black list|deny ?list|denylisted"
)
_SENDER_POLICY = rf"\bspf\b|dkim|dmarc|domainkeys|spoof|{_REPUTATION}|\bspam\b|reputation|\bptr\b|reverse dns"

# "Too many messages", "slow down", "limit exceeded" in other languages, and NetEase's own codes for it.
_PACE_ELSEWHERE = (
    r"trop (de|d') ?(messages|mails|e-?mails|connexions|requ[eê]tes|envois)|ralenti"
    r"|l[ií]mite.{0,40}(atteinte|d[eé]pass|alcanzad|excedid|superad|superat|atingid|raggiunt|ultrapass)"
    r"|(atteint|d[eé]pass|alcanzad|excedid|superad|superat|raggiunt|ultrapass).{0,40}\bl[ií]mite"
    r"|zu viele (nachrichten|e-?mails|mails|verbindungen|anfragen)|(sende|versand)\w{0,8}limit"
    r"|limit.{0,30}(erreicht|[uü]berschritten)|przekroczono.{0,30}limit"
    r"|demasiad[oa]s (mensajes|correos|conexiones|env[ií]os)"
    r"|tropp[ie] (messaggi|e-?mail|connessioni)|muit[oa]s (mensagens|e-?mails|conex)"
    r"|слишком (много|часто)|лимит.{0,40}(превышен|исчерпан)"
    r"|превышен\w* .{0,40}(лимит|огранич|количеств|квот)"
    r"|频率|频繁|(超过|超出|达到).{0,20}(限制|上限|限额)|配额"
    r"|\b(mi|rp|hl):(dmc|cel|ccl|stc|sfq|drc|qrc|trc|frl|rcl|icc|ifc)\b"
)

_GREYLISTED = (
    Rule(
        "greylist",
        "RFC 6647; postgrey, sqlgrey, Exim, rspamd",
        codes=("4",),
        text=_any(r"gr[ea]y[ -]?list", r"\bgrey\b", r"\bgl01\b", "first time sender", "unknown triplet"),
        reaction=Reaction.RETRY,
    ),
)

_SENDING_STOPPED = (
    _slower(
        "quota",
        _MICROSOFT,
        text=_any("refusequota", "submissionquotaexceeded", "submission quota exceeded"),
        hold=_QUOTA,
        hold_for=_HOUR,
    ),
    _held(
        "sender-rejected",
        _MICROSOFT,
        _CONFIG,
        text=_any("sendasdenied", "not allowed to send as", r"permissions? to send (as|on behalf)"),
    ),
    _held("sender-rejected", _MICROSOFT, _CONFIG, enhanced=_any(r"5\.7\.60")),
    _held(
        "rate-limit",
        _MICROSOFT_ERRORS,
        _BLOCKED,
        enhanced=_any(r"5\.2\.25[1-5]"),
        unless=_any("quotaexceeded"),
        advice="error-throttling",
    ),
    _held(
        "rate-limit",
        _MICROSOFT_ERRORS,
        _BLOCKED,
        text=_any("throttled due to continuous"),
        advice="error-throttling",
    ),
    _held(
        "account-suspended",
        _MICROSOFT,
        _BLOCKED,
        text=_any(
            "outboundspamexception",
            "wascl useraction",
            "bad outbound sender",
            r"banned sender(?!.{0,3}\[\d)",
            "tenant has exceeded threshold",
            r"access denied, spam abuse detected(?! from ip)",
            "blocked from sending",
            "no longer allowed to send",
            "recognized as a valid sender",
        ),
    ),
    _held("account-suspended", _MICROSOFT, _BLOCKED, enhanced=_any(r"5\.7\.70[0-257]", r"5\.7\.750")),
    _held(
        "mailbox-full",
        "learn.microsoft.com: the sender's own mailbox must take the copy",
        _CONFIG,
        text=_any(r"storedrv\.submi.{0,80}(quotaexceeded|mailbox ?full)"),
        advice="own-mailbox-full",
    ),
    _held(
        "account-suspended",
        f"{_SES}; {_ZOHO}; seen: cPanel, Mailgun, SendGrid, Yandex, mail.ru",
        _BLOCKED,
        text=_any(
            "mail sending denied",
            r"sending (is |has been |was )?(paused|suspended|disabled|blocked)",
            r"(outgoing|outbound)s? (blocked|suspended|disabled)",
            r"(outgoing|outbound) (e?-?mails?|sending|smtp) .{0,60}(blocked|suspended|disabled)",
            r"\bdomain \S{1,80} is disabled",
            r"(your|sender|sending|sender's|smtp|customer|authenticated) (e-?mail |mail "
            r"|user )?(account|user|mailbox)"
            r".{0,60}(suspended|disabled|blocked|locked|banned|restricted|deactivated|under review|terminated"
            r"|not (yet )?(been )?activated)",
            r"account (is |has been |was )?(temporarily |currently )?"
            r"(suspended|blocked|disabled|locked) (for|due to|because of) .{0,30}(spam|abuse"
            r"|policy|violation|fraud)",
            r"suspended for (spam|abuse)",
            r"\b(ihr|votre|su|sua|il (tuo|suo)) (e-?mail-?|mail-?)?(konto|compte|cuenta|conta"
            r"|account|postfach).{0,40}(gesperrt|suspend|bloqu|sospes|bloccat)",
            r"\bваш.{0,40}(заблокирован|приостановлен)",
            r"user (is )?(suspended|blocked) for",
            r"for this account.{0,20}(paused|suspended)",
            r"domain .{0,80}is not allowed to send(?!.{0,80}(unverified|dns|authorized recipients))",
        ),
        unless=_any("recipient", "try again", "please retry", r"\bip\b.{0,20}blocked"),
    ),
    _held(
        "account-suspended",
        "at these stages only the login's own account can be meant",
        _BLOCKED,
        stages=_at(Stage.AUTH, Stage.MAIL),
        text=_any(
            r"(account|mailbox|user|domain|subscription|sender address rejected).{0,60}"
            r"(suspended|disabled|deactivated|is blocked|been blocked|locked|inactive|not active|banned"
            r"|terminated|expired)",
            r"access to this account is disabled",
        ),
        unless=_any(
            "smtpclientauthentication",
            "smtp auth",
            "basic auth",
            "password.{0,20}expired",
            "token",
            _REPUTATION,
            "temporar",
            "try again",
            "web ?browser",
            "too many",
        ),
    ),
    _held("account-suspended", _ENHANCED, _BLOCKED, enhanced=_any(r"5\.7\.13")),
    _held(
        "account-suspended",
        "after the recipients were taken, a bare account is the login's unless the code says mailbox",
        _BLOCKED,
        stages=_MESSAGE,
        enhanced=_any("", r"5\.[07]\.\d+"),
        text=_any(r"\baccount (is |has been |was )?(suspended|disabled|deactivated|blocked|locked)"),
        unless=_any("recipient", "mailbox", r"\buser\b", "@", "this", "delivery", "try again", _REPUTATION),
    ),
)

_TRANSPORT_SECURITY = (
    _held(
        "tls-required",
        "RFC 3207 4; RFC 4954 6",
        _CONFIG,
        text=_any(
            "starttls (command )?first",
            "issue a? ?starttls",
            "starttls (is )?required",
            r"(tls|ssl|encryption|secure connection) (is )?(required|needed|mandatory)",
            r"(must|need to|please) (use|issue|send|enable) (a )?(starttls|tls|ssl|encryption|secure)",
            r"requires? (starttls|tls|ssl|encryption|an? (encrypted|secure))",
            r"session is not encrypted",
            r"plaintext authentication disallowed",
        ),
        unless=_any("not supported", r"recipient.{0,30}requires"),
        reaction=Reaction.GIVE_UP,
    ),
    _held(
        "tls-required",
        "RFC 4954 6",
        _CONFIG,
        codes=("538",),
        reaction=Reaction.GIVE_UP,
    ),
    _held(
        "tls-required",
        _ENHANCED,
        _CONFIG,
        enhanced=_any(r"5\.7\.1[01]"),
        codes=("530",),
        reaction=Reaction.GIVE_UP,
    ),
)

_SIGN_IN = (
    _held(
        "auth",
        "techcommunity.microsoft.com 4489835 (2026-01-27)",
        _AUTH,
        text=_any(r"basic authentication is (not supported|disabled)"),
        advice="auth-microsoft-basic",
    ),
    _held("auth", _MICROSOFT, _AUTH, enhanced=_any(r"5\.7\.30"), advice="auth-microsoft-basic"),
    _held(
        "auth",
        _MICROSOFT_SUBMIT,
        _CONFIG,
        text=_any("smtpclientauthentication is disabled", "smtp auth.{0,40}(is )?disabled"),
        advice="auth-microsoft-disabled",
    ),
    _held("auth", _MICROSOFT, _AUTH, enhanced=_any(r"5\.7\.139"), advice="auth-microsoft"),
    _held(
        "auth",
        f"{_GOOGLE}; Yahoo, iCloud, mail.ru, QQ: app passwords",
        _AUTH,
        text=_any(
            r"app(lication)?[ -]?(specific )?password",
            "authorization code",
            "invalidsecondfactor",
            "parol prilozheniya",
        ),
        advice="auth-app-password",
    ),
    _held(
        "auth",
        _GOOGLE,
        _AUTH,
        text=_any(r"web ?browser", "webloginrequired", "weblogin"),
        advice="auth-web-login",
    ),
    _held("auth", _GOOGLE, _AUTH, codes=("534",), enhanced=_any(r"5\.7\.14"), advice="auth-web-login"),
    _held("auth", _GOOGLE, _AUTH, text=_any("badcredentials"), advice="auth-gmail"),
    _held(
        "auth",
        "RFC 4954 6; Exchange 5.7.57",
        _AUTH,
        codes=("530", "50", "55"),
        text=_any(
            r"authenticat(ion|e) (is )?(required|needed|first)",
            r"auth(entication)? (command )?(is )?(required|needed|first)",
            r"(must|need to|please|have to|requires? you to) (first )?(be |get )?"
            r"(auth(enticate|enticated)?|log ?in|log ?on)\b",
            r"(client|sender|user|session|you are|you're|connection) (was |is )?not (been )?"
            r"(authenticated|logged in)",
            r"need.{0,20}\bauth\b",
            "turn on smtp auth",
            "without authentication",
            r"unauthenticated (senders?|users?|mail|connections?)( is| are)? not (allowed"
            r"|permitted|accepted)",
            "smtp authentication required",
        ),
        unless=_any(r"resolver\.", "group", "restricted", "gmail requires", _SENDER_POLICY),
        advice="auth-required",
    ),
    _held("auth", "Exchange", _AUTH, enhanced=_any(r"5\.7\.57"), advice="auth-required"),
    _held("auth", "RFC 4954 6", _AUTH, codes=("530",), advice="auth-required"),
    _held(
        "auth",
        f"{_ENHANCED}; {_GOOGLE}",
        _AUTH,
        codes=("534", "535", "525"),
        unless=_any("auth004_busy"),
    ),
    _held(
        "auth",
        f"{_SES}; {_GOOGLE}: relay",
        _CONFIG,
        text=_any(
            r"invalid (login|credentials|password|user ?name)",
            r"credentials (were |are )?(incorrect|invalid|not accepted|rejected)",
            r"(bad|wrong|incorrect) (user ?name|password|authentication|credentials)",
            r"is not authori[sz]ed to perform",
            r"(authentication|login) (has )?(failed|failure|denied|rejected|unsuccessful|error)\b",
        ),
        unless=_any(_SENDER_POLICY, "5322", "message authentication", "temporar"),
    ),
    Rule(
        "auth",
        "RFC 4954 6: a password transition is needed",
        stages=_at(Stage.AUTH),
        codes=("432",),
        reaction=Reaction.HOLD_ACCOUNT,
        hold=_AUTH,
        scope=Scope.ACCOUNT,
    ),
    _slower(
        "quota",
        "docs.sendgrid.com: credits",
        text=_any("credits exceeded", "exceeded your (messaging|email|message) limits"),
        hold=_QUOTA,
        hold_for=_HOUR,
    ),
    _slower(
        "rate-limit",
        _GOOGLE,
        stages=_at(Stage.AUTH),
        codes=("4",),
        text=_any(
            r"too many.{0,40}(login|auth|sign|attempt|connection|session|request|fail)",
            r"\brate\b.{0,20}(limit|exceed|high)",
            "throttl",
            "frequen",
            r"limit\b",
        ),
        hold=_LIMITED,
        hold_for=_QUARTER,
        advice="login-limit",
    ),
    Rule(
        "auth",
        "RFC 4954 6: 454 says nothing about the password",
        stages=_at(Stage.AUTH),
        codes=("4",),
        unless=_any("service not available", "shutting down"),
        reaction=Reaction.RETRY,
        scope=Scope.ACCOUNT,
        advice="auth-temporary",
    ),
)

_SENDER_NOT_OURS = (
    _held(
        "sender-rejected",
        "Postfix reject_sender_login_mismatch, Exim sender verify; seen: Yandex, QQ, GMX,"
        " Zoho, Fastmail, SES, SendGrid",
        _CONFIG,
        text=_any(
            "not owned by",
            r"sender address (is )?(not allowed|invalid|does not exist|not valid)",
            "unauthori[sz]ed sender",
            "(forbidden|foreign) sender",
            "sender (is )?(unauthori[sz]ed|not authori[sz]ed)",
            r"sender (address )?(\S{1,80} )?(is |was )?not (allowed|permitted)"
            r"(?! to (send|post|write|e?-?mail|contact|deliver))",
            r"sender (address )?(\S{1,80} )?(does not|doesn't) belong to",
            r"may not (send as|use (this|that) (sender|address|from))",
            r"not authori[sz]ed to (send|use).{0,60}\b(from|as|behalf|this sender)\b",
            r"(not allowed|not permitted) to (send|use).{0,40}\b(from|as|behalf|this sender)\b",
            r"(can(no|')?t|may not) send.{0,40}\b(from|as|using|with) (this|that|the|an?) "
            r"(sender|from|address|e-?mail)",
            r"not (allowed|permitted|authori[sz]ed) to use .{0,30}(alias|address|sender)",
            r"mail ?from.{0,30}(must|should|not|does).{0,20}(same|equal|match)",
            r"\bfrom\W{0,3}(header |e-?mail )?(address|header).{0,60}(not |n't |not a )(match"
            r"|verified|allowed|authori[sz]ed"
            r"|one of|confirmed|belong|permitted|valid|yours)",
            r"(match|same as|equal).{0,20}(auth(enticated|entication|orization|orized)?|login|logged)",
            r"sender (mismatch|address mismatch|login mismatch)",
            r"sender is not allowed to relay",
            "relaying disallowed as",
            r"absender.{0,40}(nicht|unzul)",
            r"exp[eé]diteur.{0,40}(non autoris|pas autoris|refus)",
            r"(remitente|remetente|mittente).{0,40}(no|n[aã]o|non) (est[aá] |[eè] )?(autori|permit|consent)",
            r"отправител.{0,40}(не (принадлежит|разреш|соответств|совпада))",
            r"\bdt:sum\b",
            "not local sender",
            r"(address|domain|identity|sender) (\S{1,80} )?(is |has )?(not |un)(been |an? )?verified",
            "identities failed the check",
            "verified sender",
            "sender signature",
            "unconfigured sending domain",
            "domain is unverified",
            r"sender verif(y|ication) (failed|fail)",
            "domain of sender address",
            "badmailfrom",
            "invalid sender",
            r"sender.{0,20}(user unknown|unknown user|does not exist|not exist)",
        ),
        unless=_any(
            _SENDER_POLICY,
            r"\bpolicy\b",
            r"sender ip\b",
            r"\bip address\b",
            "recipient address rejected",
            "5322",
        ),
    ),
    _held(
        "sender-rejected",
        "before any recipient is named, only the sender's own address can be meant; seen: Yahoo",
        _CONFIG,
        stages=_at(Stage.MAIL),
        text=_any(
            "mailbox (unavailable|not found)",
            "user unknown",
            "unknown (user|sender)",
            "no such (user|mailbox)",
        ),
        unless=_any(_SENDER_POLICY, r"\bpolicy\b", "recipient", "limit"),
    ),
    _held(
        "sender-rejected",
        "Postfix: Sender address rejected",
        _CONFIG,
        text=_any("sender address rejected"),
        unless=_any(
            _SENDER_POLICY,
            r"\bpolicy\b",
            "limit",
            "quota",
            r"\brate",
            "exceed",
            "blocked",
            "too many",
            "access denied",
        ),
    ),
    _held(
        "sender-rejected",
        _ENHANCED,
        _CONFIG,
        codes=("55",),
        stages=_at(Stage.MAIL, Stage.RCPT),
        enhanced=_any(r"5\.1\.[78]"),
        unless=_any(_SENDER_POLICY),
    ),
)

# Before the limits: words such as "exceeded" and "quota" in these do not mean the sender's pace.
_NOT_A_PACE = (
    Rule(
        "expired",
        f"{_MICROSOFT}; IronPort; the queue quotes what it last met, which is no pace of ours",
        codes=("5",),
        text=_any(
            r"(message|delivery|mail) expired",
            r"queue\.expired",
            "retry (timeout|time) (exceeded|not reached)",
            "unable to deliver in",
        ),
        unless=_any("dns"),
    ),
    Rule(
        "routing-loop",
        "RFC 5321 6.3; Exchange 5.4.14, Gmail 5.4.6",
        text=_any(
            r"hop count",
            r"too many hops",
            r"\d+ hops",
            "maximum hops",
            r"mail loop",
            r"loop(s)? (back|detected)",
            "too many .{0,2}received",
            "routing loop",
            "loop detect",
        ),
    ),
    Rule(
        "mailbox-full",
        _ENHANCED,
        enhanced=_any(r"[45]\.2\.2"),
        unless=_any("per (hour|day|minute)", "daily", "hourly", "sending (limit|quota|rate)"),
    ),
    Rule(
        "mailbox-full",
        "seen: Gmail, Yahoo, Dovecot, Exim, Courier, Orange",
        text=_any(
            r"(mail ?box|mail ?folder|in ?box|maildir|account|mail ?drop).{0,40}\b(is full|full"
            r"|over ?quota|exceeded"
            r" (its|the|their) (storage|quota|size))",
            r"over ?quota",
            r"out of storage",
            r"(exceeded|exceeds|insufficient|over).{0,30}(storage|disk (space|quota)|mailbox (size|quota))",
            r"(storage|disk|mailbox) (quota|allocation|limit)",
            r"(user|recipient)('s)? quota",
            r"recipient('s)? .{0,20}(store|storage|mailbox).{0,30}(exceed|limit)",
            r"overdrawn|disk ?space quota",
            r"mailbox size limit",
            r"quota exceeded.{0,20}mailbox",
            r"bo[iî]te.{0,30}pleine",
            r"postfach.{0,30}voll",
            r"(buz[oó]n|casella|caixa).{0,40}(llen|pien|chei)",
            r"ящик.{0,40}(переполнен|заполнен)",
            r"no space left in mailbox",
            r"not enough (storage|space).{0,30}(mailbox|user|recipient)",
        ),
        unless=_any(
            r"per (hour|day|minute)",
            "daily",
            "hourly",
            r"sending (limit|quota|rate)",
            "system storage",
            "insufficient system",
            r"disk space; try",
            r"message size exceeds",
            r"send limit",
            "rate limit",
            r"too many connections",
        ),
    ),
    Rule(
        "mailbox-full",
        "a bare quota named by the delivering side is the recipient's; Dovecot LMTP, Courier",
        stages=_at(Stage.RCPT) | _MESSAGE,
        text=_any("quota exceeded", "exceed.{0,20}quota"),
        unless=_any(
            r"\bsend(s|er|ing)?\b",
            r"\brelay",
            "daily",
            r"\bhour",
            r"\bday\b",
            "monthly",
            r"(message|e-?mail|smtp|account|submission|outgoing|outbound) quota",
            "messages",
            r"\byour?\b",
            r"\brate\b",
        ),
    ),
    Rule("size", _ENHANCED, codes=("5",), enhanced=_any(r"5\.3\.4"), scope=Scope.MESSAGE),
    Rule(
        "size",
        "RFC 1870; seen: all",
        text=_any(
            r"(message|mail|e-?mail|content|data|attachment|header|file) ?(size)?( is)? (too"
            r"|to) (large|big|long)\b",
            r"\bsize.{0,40}(exceed|limit|larger|maximum|too)",
            r"(exceed|larger|bigger|greater|over).{0,60}(\bsize\b|databytes|maximum message"
            r"|mb limit|max(imum)? (size|length))",
            r"too (large|big)\b",
        ),
        unless=_any("too many", "recipients"),
        scope=Scope.MESSAGE,
    ),
    Rule(
        "too-many-recipients",
        "RFC 5321 4.5.3.1.10: 552 to RCPT is to be treated as temporary",
        stages=_at(Stage.RCPT),
        codes=("5",),
        text=_any(
            r"too many (rcpts?|recipients|recips)",
            r"recipients? (limit|count)",
            r"max(imum)? (number of )?recipients",
        ),
        unless=_any(
            r"\bhour",
            r"\bday\b",
            "daily",
            "today",
            r"\bper (hour|minute|day)",
            "24",
            r"\brate\b",
            "short (time|period)",
        ),
        reaction=Reaction.RETRY,
        hold=_LIMITED,
        hold_for=timedelta(minutes=1),
    ),
    Rule(
        "too-many-recipients",
        "RFC 5321 4.5.3.1.10",
        text=_any(
            r"too many (rcpts?|recipients|recips)",
            r"recipients? ?limit",
            r"max(imum)? (number of )?recipients",
            "policy size per transaction",
        ),
        unless=_any(
            r"\bhour",
            r"\bday\b",
            "daily",
            "today",
            r"\bper (hour|minute|day)",
            r"minutes?\b",
            "24",
            r"\brate\b",
            r"recipients from",
            "short (time|period)",
            r"send(ing)? (limit|rate)",
            "quota",
        ),
    ),
    Rule(
        "too-many-recipients",
        _ENHANCED,
        enhanced=_any(r"[45]\.5\.3"),
        codes=("45", "55"),
        unless=_any(r"\bhour", r"\bday\b", "daily", r"\brate\b", "quota", "messages"),
    ),
    _slower(
        "rate-limit",
        f"{_GOOGLE} 4.2.1; Yandex",
        codes=("4",),
        text=_any(
            r"receiving mail (too quickly|at a rate)", r"recipient (has )?exceeded.{0,40}(limit|rate|number)"
        ),
        scope=Scope.RECIPIENT,
        advice="recipient-limit",
        retry_after=_QUARTER,
    ),
    _slower(
        "rate-limit",
        f"{_GOOGLE} 5.2.1; {_MICROSOFT} 5.2.121, 5.2.122",
        codes=("5",),
        text=_any(
            r"receiving mail (too quickly|at a rate)",
            r"recipient(.s)? .{0,20}exceeded.{0,40}(limit|rate|number)",
            r"recipient(.s)? (per hour )?(message )?receive limit",
        ),
        hold=_LIMITED,
        hold_for=_QUARTER,
        scope=Scope.RECIPIENT,
        advice="recipient-limit",
    ),
    _slower(
        "rate-limit",
        _MICROSOFT,
        codes=("5",),
        enhanced=_any(r"5\.2\.12[0-2]"),
        hold=_LIMITED,
        hold_for=_QUARTER,
        scope=Scope.RECIPIENT,
        advice="recipient-limit",
    ),
)

_LIMITS = (
    _slower(
        "connection-limit",
        f"{_MICROSOFT_SUBMIT}; Postfix anvil, Exim smtp_accept_max, sendmail, Yahoo",
        text=_any(
            "concurren(t|cy)",
            r"too many.{0,30}(connection|session|thread)",
            "thread limit",
            r"(connection|session) ?(count|rate)? (limit|quota)",
            r"max(imum)? (number of )?(simultaneous |open |allowed )?(connections|sessions|threads)",
            r"(messages?|mails?|recipients) (count )?per (connection|session)",
            r"too many (messages|mails|e-?mails|transactions).{0,20}(session|connection)",
            r"too frequent connects",
            r"connects? too (often|frequently)",
        ),
        hold_for=None,
    ),
    _slower(
        "quota",
        f"{_GOOGLE} 5.4.5; {_MICROSOFT} 5.1.90, 5.7.232, 5.7.233",
        codes=("5",),
        enhanced=_any(r"5\.4\.5", r"5\.1\.90", r"5\.7\.23[23]"),
        unless=_any("loop"),
        hold=_QUOTA,
        hold_for=_HOUR,
    ),
    _slower("quota", f"{_ZOHO} 5.4.6", text=_any("unusual sending activity"), hold=_QUOTA, hold_for=_HOUR),
    _slower(
        "quota",
        f"{_SES}; {_GOOGLE}; seen: GoDaddy, cPanel, Rackspace, Yahoo, GMX",
        text=_any(
            r"\bdaily\b.{0,60}(limit|quota|exceed|maximum)",
            r"(limit|quota|exceed|maximum|reached).{0,60}(\bdaily\b|per day|a day|today|\b24[ -]?h"
            r"|per (calendar )?month|monthly)",
            r"(message|e-?mail|sending|send|relay|outgoing|outbound|submission|account|smtp|recipient) quota",
            r"quota (has been |is |was )?(exceed|reached|used|will reset)",
            r"(exceed|reach|over).{0,40}\bquota",
            r"(max|maximum).{0,30}(e-?mails|messages|defers|recipients).{0,30}(per|an?) (hour|day)",
            r"relay(ing)? limit",
            r"\b(hourly|daily|monthly)\b.{0,40}(maximum|allowance|allotment)",
            r"(allowance|allotment) .{0,40}(exhaust|used up|reached|exceed)",
        ),
        unless=_any(r"\bsize\b"),
        hold=_QUOTA,
        hold_for=_HOUR,
    ),
    _slower(
        "rate-limit",
        "seen: Postfix anvil, Exim ratelimit, rspamd, Proofpoint, Outlook.com RP-001,"
        " Comcast, Orange, GMX, QQ, Yahoo TSS04",
        text=_any(
            r"rate[ -]?(limit|control)",
            "throttl",
            r"frequency limited",
            r"exceed\w* .{0,40}frequency",
            r"excessive (number of )?(connect|request|message|mail|e-?mail|sending|rate|volume)",
            r"(frequency|rate) (is )?(limit|exceed|too|control)",
            r"too much mail",
            r"too many (messages|mails|e-?mails|requests|recipients|new tls|deliveries"
            r"|transactions|submissions|sends"
            r"|login|envelopes|attempts)",
            r"too (fast|quickly|frequent|often)",
            r"slow(er| down|ing down)\b",
            r"(send|sending|message|mail|e-?mail|hourly|submission|outgoing|outbound|delivery"
            r"|recipient|hour|minute|user)"
            r"s?( rate)? limit",
            r"limit(s|ed)? (has been |was |is |have been )?(exceeded|reached)",
            r"exceed(ed|s|ing)?.{0,60}\b(limits?|rate|allowed|permitted|threshold)\b",
            r"(messages|mails|e-?mails|recipients|connections) per (second|minute|hour|day)",
            r"limits? for how many",
            r"(in|per|this|an|last) (the )?(last )?hour\b",
            r"\b(short|limited) (time|period)\b",
            _PACE_ELSEWHERE,
            "unexpected volume",
            "volume of (e-?mail|mail|messages)",
        ),
        unless=_any(
            r"\bsize\b",
            r"line (too|length)",
            r"\bhops?\b",
            "too many (errors|bad|invalid|unknown|unauth|unrecogni)",
            r"time limit",
            "timeout",
            r"time ?out",
            r"try again (in|after) (an|1|one) hour",
            r"length limit",
        ),
    ),
    _slower(
        "rate-limit",
        f"{_GOOGLE} 4.7.28",
        codes=("4",),
        text=_any("unusual rate", "unusual sending", "unusual (traffic|activity|volume)"),
    ),
    _slower("rate-limit", _MICROSOFT, codes=("5",), enhanced=_any(r"5\.7\.508")),
    _slower("connection-limit", _MICROSOFT_SUBMIT, codes=("432",), unless=_any("busy")),
    _slower(
        "rate-limit",
        "support.google.com/a/answer/3726730 4.7.28",
        codes=("4",),
        enhanced=_any(r"4\.7\.28"),
    ),
)

_REFUSED_SESSION = (
    _held(
        "protocol",
        "RFC 3207 4",
        _CONFIG,
        stages=_at(Stage.TLS),
        codes=("500", "501", "502", "503", "504", "554"),
        advice="starttls-missing",
        reaction=Reaction.GIVE_UP,
    ),
    _held(
        "protocol",
        "RFC 4954 4: AUTH not known or not allowed here",
        _CONFIG,
        stages=_at(Stage.AUTH),
        codes=("500", "501", "502", "503"),
        advice="auth-mechanism",
        reaction=Reaction.GIVE_UP,
    ),
    _held(
        "auth",
        "RFC 4954 6: mechanism",
        _CONFIG,
        stages=_at(Stage.AUTH),
        codes=("504",),
        advice="auth-mechanism",
    ),
)

# Whatever else is said to a login concerns the account, and fails no mail.
_REFUSED_LOGIN = (_held("auth", "RFC 4954 6", _AUTH, stages=_at(Stage.AUTH)),)

# From here on the reaction follows the first digit; the rows name what happened.
_NAMED = (
    Rule(
        "policy/spam",
        "RFC 5782; Spamhaus, Barracuda, Proofpoint, Comcast, Outlook.com S3140",
        text=_any(
            _REPUTATION,
            r"\b(client host|ip|ip address|host|network|isp)\b.{0,60}(blocked|banned|listed|denied|refused)",
            "bad reputation",
            "poor reputation",
        ),
    ),
    Rule(
        "content",
        "RFC 3463 x.6.x; seen: ClamAV, Gmail, Zoho",
        text=_any(
            "virus",
            "malware",
            "infected",
            "phish",
            r"attachment",
            "executable",
            r"\bmime\b",
            "8-bit",
            "bare (lf|cr|newline)",
            r"malformed",
            "header",
            r"potential security issue",
            "content",
        ),
        unless=_any("spam"),
        scope=Scope.MESSAGE,
        stages=_MESSAGE,
    ),
    Rule("content", _ENHANCED, enhanced=_any(r"[45]\.6\.\d+"), scope=Scope.MESSAGE),
    Rule(
        "relay-denied",
        "Postfix, Exim, Exchange, qmail, sendmail",
        text=_any(
            r"relay(ing)?\b.{0,30}(denied|not permitted|not allowed|prohibited|refused)",
            "unable to relay",
            "not permitted to relay",
            "allowed rcpthosts",
            r"not.{0,20}\brelay",
            "open relay",
        ),
    ),
    Rule("relay-denied", _MICROSOFT, enhanced=_any(r"5\.7\.(54|64|367)")),
    Rule(
        "dns",
        "Postfix reject_unknown_*; RFC 7505",
        text=_any(
            r"domain (name )?(not found|does not exist|lookup|unknown)",
            r"\bdns\b",
            "name lookup failed",
            "host ?name",
            r"null ?mx",
            r"no (such domain|mx)",
            "nxdomain",
            "does not accept mail",
            r"host (or domain name )?not found",
            "reverse",
            r"\bptr\b",
        ),
    ),
    Rule(
        "dns",
        _ENHANCED,
        enhanced=_any(r"[45]\.1\.2", r"[45]\.4\.31[02]", r"5\.1\.10(?!.)"),
        text=_any("domain", "dns", "null"),
    ),
    Rule(
        "mailbox-disabled",
        "seen: Gmail 5.2.1, Yahoo, Comcast, Orange, Exchange",
        text=_any(
            r"(account|mailbox|user|recipient|compte).{0,50}(disabled|closed|suspended|inactive"
            r"|blocked|bloque|deactivated|discontinued"
            r"|not active|expired|locked)"
        ),
    ),
    Rule("mailbox-disabled", _ENHANCED, enhanced=_any(r"[45]\.2\.1")),
    Rule(
        "unknown-user",
        "RFC 3463 x.1.1",
        text=_any(
            "user unknown",
            "unknown user",
            "no such (user|recipient|mailbox|address|person|account)",
            r"(does|do)( not|n't) exist",
            "unknown (recipient|address|local|mailbox)",
            "mailbox (not found|unavailable|does not)",
            "unrouteable",
            "invalid (recipient|mailbox|address)",
            "recipient (not found|unknown|rejected)",
            "not our customer",
            "no mailbox",
            r"recipient ?not ?found",
            "address(es)? (unknown|invalid)",
            "not a valid (mailbox|recipient|user)",
            "doesn't have .{0,30}account",
            "undeliverable address",
        ),
        scope=Scope.RECIPIENT,
    ),
    Rule(
        "unknown-user",
        _ENHANCED,
        enhanced=_any(r"[45]\.1\.(0|1|3|6|10)"),
        stages=_at(Stage.RCPT, Stage.DATA, Stage.DOT),
        scope=Scope.RECIPIENT,
    ),
    Rule(
        "policy/spam",
        "seen: all",
        text=_any(
            "spam",
            "unsolicited",
            "policy",
            "policies",
            r"\bspf\b",
            "dkim",
            "dmarc",
            "reputation",
            "blocked",
            "banned",
            "complaint",
            "abuse",
            "prohibit",
            "not accepted",
            "suspicious",
            "unauthenticated",
            "access denied",
            "restricted",
            r"\[ts",
        ),
    ),
    Rule("protocol", "RFC 5321 4.2.4", codes=("500", "501", "502", "503", "504", "521", "555")),
    Rule("protocol", _ENHANCED, enhanced=_any(r"5\.5\.[1245]")),
    Rule("policy/spam", _ENHANCED, enhanced=_any(r"[45]\.7\.\d+")),
    Rule(
        "server-busy",
        "RFC 5321 3.8, 4.3.2; RFC 3463 x.3.x, x.4.x",
        codes=("421",),
        scope=Scope.HOST,
    ),
    Rule("server-busy", _ENHANCED, codes=("4",), enhanced=_any(r"4\.3\.\d+", r"4\.4\.\d+"), scope=Scope.HOST),
    Rule(
        "server-busy",
        "seen: all",
        codes=("4",),
        text=_any("busy", "resources", "unavailable", "overload", "system (error|problem)", "disk", "load"),
        scope=Scope.HOST,
        stages=_SESSION | _MESSAGE | _at(Stage.MAIL),
    ),
)

# The general rule: first digit by way of `reaction=None`, the stage's own scope.
_GENERAL = (
    Rule("temporary", "RFC 5321 4.2.1", codes=("4",)),
    Rule("refused", "RFC 5321 4.2.1", codes=("5",)),
    Rule("protocol", "RFC 5321 4.2: not a reply code", scope=Scope.HOST, reaction=Reaction.RETRY),
)


def _in_order(*groups: Iterable[Rule]) -> tuple[Rule, ...]:
    return tuple(rule for group in groups for rule in group)


RULES = _in_order(
    _GREYLISTED,
    _SENDING_STOPPED,
    _TRANSPORT_SECURITY,
    _SIGN_IN,
    _REFUSED_SESSION,
    _SENDER_NOT_OURS,
    _NOT_A_PACE,
    _LIMITS,
    _REFUSED_LOGIN,
    _NAMED,
    _GENERAL,
)
