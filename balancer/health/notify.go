package health

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
)

// Notify says who is told of changes, and how long that may take.
type Notify struct {
	Command []string // absolute path of a program, and arguments, to which those of the event are added; nil: none
	Webhook string   // URL to POST to; "": none
	Timeout time.Duration
}

// Event is a change of state of a service or a realserver. It is what is posted to a webhook.
type Event struct {
	Time       time.Time `json:"time"`
	Kind       string    `json:"kind"` // "service" or "realserver"
	Service    string    `json:"service"`
	Realserver string    `json:"realserver,omitempty"` // its address; "" where a service has changed
	Old        string    `json:"old"`                  // "up", "down", or "unknown" in the first event of each
	New        string    `json:"new"`                  // "up" or "down"
	Reason     string    `json:"reason"`
}

// Notifier tells the outside about events: in order, and without ever holding up who has them.
type Notifier struct {
	failed func(error)
	sinks  []*sink
}

// NewNotifier is a notifier that tells nobody. It calls failed when somebody could not be told.
func NewNotifier(failed func(error)) *Notifier {
	n := &Notifier{failed: failed}
	n.sinks = []*sink{
		{wake: make(chan struct{}, 1), failed: failed, send: command,
			wanted: func(c Notify) bool { return len(c.Command) > 0 }},
		{wake: make(chan struct{}, 1), failed: failed, send: webhook,
			wanted: func(c Notify) bool { return c.Webhook != "" }},
	}
	return n
}

// Set says who is told from now on, also of what waits already.
func (n *Notifier) Set(c Notify) {
	for _, s := range n.sinks {
		s.mu.Lock()
		s.config = c
		s.mu.Unlock()
	}
}

// Tell queues events. When too many wait the oldest are forgotten, and that is reported as a failure.
func (n *Notifier) Tell(events ...Event) {
	for _, s := range n.sinks {
		s.add(events)
	}
}

// flushTime is how long events that wait still have when the program ends.
const flushTime = 2 * time.Second

// Run tells until ctx is cancelled, and then for a little while what still waits.
func (n *Notifier) Run(ctx context.Context) error {
	after, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(flushTime, cancel) })()
	var all sync.WaitGroup
	for _, s := range n.sinks {
		all.Go(func() { s.run(ctx, after) })
	}
	all.Wait()
	return nil
}

// sink is one who is told.
type sink struct {
	failed func(error)
	send   func(ctx context.Context, c Notify, e Event) error
	wanted func(Notify) bool

	mu     sync.Mutex
	config Notify
	queue  []Event
	lost   int
	wake   chan struct{}
}

// maxQueue is the most events that wait: enough for the first states of 10,000 realservers and their services.
const maxQueue = 20_000

func (s *sink) add(events []Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.wanted(s.config) {
		return
	}
	s.queue = append(s.queue, events...)
	if more := len(s.queue) - maxQueue; more > 0 {
		s.queue = slices.Delete(s.queue, 0, more)
		s.lost += more
	}
	signal(s.wake)
}

// next takes the oldest event, and the number of those that were lost before it.
func (s *sink) next() (e Event, c Notify, lost int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	lost, s.lost = s.lost, 0
	if !s.wanted(s.config) {
		s.queue = nil
	}
	if len(s.queue) == 0 {
		s.queue = nil
		return e, c, lost, false
	}
	e = s.queue[0]
	s.queue = s.queue[1:]
	return e, s.config, lost, true
}

// run tells until ctx is cancelled and the queue is empty, or after is cancelled too.
func (s *sink) run(ctx, after context.Context) {
	for {
		e, c, lost, ok := s.next()
		if lost > 0 {
			s.failed(fmt.Errorf("%d notifications were never sent: more than %d waited", lost, maxQueue))
		}
		if ok && after.Err() == nil {
			bounded, cancel := context.WithTimeout(after, c.Timeout)
			if err := s.send(bounded, c, e); err != nil {
				s.failed(fmt.Errorf("%s %s: %w", e.subject(), e.New, err))
			}
			cancel()
			continue
		}
		if ok {
			s.failed(fmt.Errorf("%s %s: notification never sent: the director has ended", e.subject(), e.New))
			continue
		}
		select {
		case <-s.wake:
		case <-ctx.Done():
			return
		}
	}
}

// subject names what has changed.
func (e *Event) subject() string {
	if e.Realserver == "" {
		return fmt.Sprintf("service %q", e.Service)
	}
	return fmt.Sprintf("service %q: realserver %s", e.Service, e.Realserver)
}

// command runs the program of c for e.
func command(ctx context.Context, c Notify, e Event) error {
	realserver := e.Realserver
	if realserver == "" {
		realserver = "-"
	}
	args := []string{e.Kind, e.Service, realserver, e.Old, e.New, e.Reason}
	env := []string{"VSTUN_KIND=" + e.Kind, "VSTUN_SERVICE=" + e.Service, "VSTUN_REALSERVER=" + realserver,
		"VSTUN_OLD=" + e.Old,
		"VSTUN_NEW=" + e.New, "VSTUN_REASON=" + e.Reason}
	_, err := runCommand(ctx, slices.Concat(c.Command, args), env)
	return err
}

// retryAfter is the pause after a webhook has failed. It is tried again as long as its time lasts.
const retryAfter = time.Second

// webhook posts e to the URL of c.
func webhook(ctx context.Context, c Notify, e Event) error {
	body, err := json.Marshal(e)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true}}
	for {
		again, err := post(ctx, client, c.Webhook, string(body))
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

// post posts once, and says whether a failure may pass.
func post(ctx context.Context, client *http.Client, to, body string) (again bool, err error) {
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

// WebhookHost is what may be logged of a webhook's URL: its path is often a secret.
func WebhookHost(webhook string) string {
	u, err := url.Parse(webhook)
	if err != nil || webhook == "" {
		return ""
	}
	return u.Scheme + "://" + u.Host
}
