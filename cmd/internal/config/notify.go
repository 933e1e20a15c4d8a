package config

import (
	"net/url"
	"time"
)

// readNotify reads the [notify] table, which may be missing. d has the services and the instances of VRRP.
func readNotify(root *table, d *Director) Notify {
	_, there := root.value("notify")
	t := root.table("notify", "a [notify] table")
	n := Notify{Command: readCommand(t, nil), Webhook: readWebhook(t), Mail: readMail(t, d)}
	n.Timeout = t.duration("timeout", 10*time.Second, 100*time.Millisecond, 5*time.Minute, "100ms to 5m")
	if t.values["command"] == nil && t.values["webhook"] == nil && t.values["mail"] == nil && there && t.values != nil {
		t.fault("has none of command, webhook and mail: want one of them, or leave the table out")
	}
	t.finish()
	return n
}

func readWebhook(t *table) string {
	const want = `a URL such as "https://hooks.example.com/vstun"`
	s, ok := t.text("webhook", "", want)
	if _, written := t.values["webhook"]; !ok || !written {
		return ""
	}
	if u, err := url.Parse(s); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		t.faultAt("webhook", "%s is not a URL of http or https: want %s", show(s), want)
	}
	return s
}
