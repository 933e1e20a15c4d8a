package doctor

import (
	"fmt"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/words"
)

// mail records that the director's mails fail. m is nil if it sends none.
func (res *result) mail(m *api.Mail) {
	switch {
	case m == nil:
		res.fine("no mail is configured")
	case m.Error == "":
		res.fine("%s sent by %s, %d failed", words.Count(m.Sent, "mail"), m.Server, m.Failed)
	case m.Failing > 0:
		res.find(Finding{Severity: Warning, Where: m.Server, What: "the director's mails fail: " + m.Error,
			Why: fmt.Sprintf("%s of health in no mail yet", words.Count(m.Waiting, "change")),
			Fix: "director status --json", Remarks: []string{"repair the server, or correct notify.mail, then " +
				"reload: a reload sends the mail at once"}})
	default:
		res.find(Finding{Severity: Warning, Where: m.Server, What: "the server has refused a mail or a recipient: " +
			m.Error, Why: fmt.Sprintf("%s of health in no mail since the start", words.Count(m.Lost, "change")),
			Fix: "director status --json", Remarks: []string{"look at to and from of notify.mail, then reload"}})
	}
}
