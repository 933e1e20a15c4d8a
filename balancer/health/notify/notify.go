// Package notify reports changes of health to a program, to a webhook and by mail.
package notify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"vstun/balancer/health/command"
)

// Config names the receivers of events. The zero value has none.
type Config struct {
	Command []string      // absolute path of a program, and arguments; the event's are appended; nil: none
	Webhook string        // URL to POST to; "": none
	Mail    *Mail         // nil: none
	Timeout time.Duration // of one notification, 100 ms to 5 min
}

// Kinds of events.
const (
	KindService    = "service"
	KindRealserver = "realserver"
	KindVRRP       = "vrrp"
)

// Kinds returns all kinds of events.
func Kinds() []string { return []string{KindService, KindRealserver, KindVRRP} }

// Event is a change of state of a service, a realserver or an instance of VRRP. Its JSON form is posted to a webhook.
type Event struct {
	Time       time.Time `json:"time"`
	Kind       string    `json:"kind"` // one of Kinds
	Service    string    `json:"service"`
	Realserver string    `json:"realserver,omitempty"` // its address, and its own port; "": a service has changed
	Old        string    `json:"old"`                  // "up", "down", or "unknown" in a first event
	New        string    `json:"new"`                  // "up" or "down"
	Reason     string    `json:"reason"`
}

// Notifier sends events to its receivers, in order. Its methods may be called by any number of goroutines.
type Notifier struct {
	queues []*queue
	mailer *mailer
}

// New returns a Notifier without receivers. It calls failed for each undeliverable event.
func New(failed func(error)) *Notifier {
	return &Notifier{mailer: newMailer(failed), queues: []*queue{
		{wake: make(chan struct{}, 1), failed: failed, send: run,
			wanted: func(c Config) bool { return len(c.Command) > 0 }},
		{wake: make(chan struct{}, 1), failed: failed, send: post,
			wanted: func(c Config) bool { return c.Webhook != "" }},
	}}
}

// Set replaces the receivers. Events that wait already go to the new ones.
func (n *Notifier) Set(c Config) {
	for _, q := range n.queues {
		q.mu.Lock()
		q.config = c
		q.mu.Unlock()
	}
	n.mailer.set(c.Mail, c.Timeout)
}

// Send queues events. It never blocks. If more than maxQueue wait, or maxMailed for a mail, the oldest are dropped and
// reported.
func (n *Notifier) Send(events ...Event) {
	for _, q := range n.queues {
		q.add(events)
	}
	n.mailer.add(events)
}

// Mail returns the state of the receiver by mail.
func (n *Notifier) Mail() MailStats { return n.mailer.read() }

// flushTime bounds the time in which waiting events are sent after the program's end has begun.
const flushTime = 2 * time.Second

// Run sends events until ctx is cancelled, and then the waiting ones for up to flushTime. It returns nil.
func (n *Notifier) Run(ctx context.Context) error {
	after, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(flushTime, cancel) })()
	var all sync.WaitGroup
	for _, q := range n.queues {
		all.Go(func() { q.run(ctx, after) })
	}
	all.Go(func() { n.mailer.run(ctx, after) })
	all.Wait()
	return nil
}

// queue is the waiting events of one receiver.
type queue struct {
	failed func(error)
	send   func(ctx context.Context, c Config, e Event) error
	wanted func(Config) bool // reports whether the configuration has the receiver

	mu     sync.Mutex
	config Config
	events []Event
	lost   int // events dropped since the last send
	wake   chan struct{}
}

// maxQueue bounds the waiting events: enough for the first states of 10,000 realservers and their services.
const maxQueue = 20_000

func (q *queue) add(events []Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.wanted(q.config) {
		return
	}
	q.events = append(q.events, events...)
	if more := len(q.events) - maxQueue; more > 0 {
		q.events = slices.Delete(q.events, 0, more)
		q.lost += more
	}
	select {
	case q.wake <- struct{}{}:
	default: // a wake-up is pending already
	}
}

// next takes the oldest event. lost is the number of events dropped before it.
func (q *queue) next() (e Event, c Config, lost int, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	lost, q.lost = q.lost, 0
	if !q.wanted(q.config) {
		q.events = nil
	}
	if len(q.events) == 0 {
		q.events = nil
		return e, c, lost, false
	}
	e = q.events[0]
	q.events = q.events[1:]
	return e, q.config, lost, true
}

// run sends events until ctx is cancelled and the queue is empty. Once after is cancelled, it reports the rest as
// failures.
func (q *queue) run(ctx, after context.Context) {
	for {
		e, c, lost, ok := q.next()
		if lost > 0 {
			q.failed(fmt.Errorf("%d notifications were never sent: more than %d waited", lost, maxQueue))
		}
		if ok && after.Err() == nil {
			bounded, cancel := context.WithTimeout(after, c.Timeout)
			if err := q.send(bounded, c, e); err != nil {
				q.failed(fmt.Errorf("%s %s: %w", e.subject(), e.New, err))
			}
			cancel()
			continue
		}
		if ok {
			q.failed(fmt.Errorf("%s %s: notification never sent: the director has ended", e.subject(), e.New))
			continue
		}
		select {
		case <-q.wake:
		case <-ctx.Done():
			return
		}
	}
}

// subject names the service or realserver.
func (e *Event) subject() string {
	if e.Realserver == "" {
		return fmt.Sprintf("%s %q", noun(e.Kind), e.Service)
	}
	return fmt.Sprintf("service %q: realserver %s", e.Service, e.Realserver)
}

// run runs the program of c for e.
func run(ctx context.Context, c Config, e Event) error {
	realserver := e.Realserver
	if realserver == "" {
		realserver = "-"
	}
	args := []string{e.Kind, e.Service, realserver, e.Old, e.New, e.Reason}
	env := []string{"VSTUN_KIND=" + e.Kind, "VSTUN_SERVICE=" + e.Service, "VSTUN_REALSERVER=" + realserver,
		"VSTUN_OLD=" + e.Old, "VSTUN_NEW=" + e.New, "VSTUN_REASON=" + e.Reason}
	_, err := command.Run(ctx, slices.Concat(c.Command, args), env)
	return err
}

// retryAfter is the pause after a failed attempt at a webhook. Attempts go on until the timeout.
const retryAfter = time.Second

// post posts e to the URL of c.
func post(ctx context.Context, c Config, e Event) error {
	body, err := json.Marshal(e)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true}}
	for {
		again, err := postOnce(ctx, client, c.Webhook, string(body))
		if err == nil || !again {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(retryAfter):
		}
	}
}

// postOnce posts once. again reports whether another attempt may succeed.
func postOnce(ctx context.Context, client *http.Client, to, body string) (again bool, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, to, strings.NewReader(body))
	if err != nil {
		return false, err
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("User-Agent", "vstun")
	answer, err := client.Do(request)
	if fault, ok := errors.AsType[*url.Error](err); ok {
		err = fault.Err // without the URL
	}
	if err != nil {
		return true, fmt.Errorf("webhook %s: %w", WebhookHost(to), err)
	}
	_ = answer.Body.Close()
	if answer.StatusCode >= 300 {
		again = answer.StatusCode >= 500 || answer.StatusCode == http.StatusTooManyRequests
		return again, fmt.Errorf("webhook %s: HTTP status %s", WebhookHost(to), answer.Status)
	}
	return false, nil
}

// WebhookHost returns the part of a webhook's URL that may be logged: its path is often a secret.
func WebhookHost(webhook string) string {
	u, err := url.Parse(webhook)
	if err != nil || webhook == "" {
		return ""
	}
	return u.Scheme + "://" + u.Host
}
