package top

import (
	"context"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/gdamore/tcell/v2"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/daemon"
)

// screen is the view in a terminal.
type screen struct {
	tcell.Screen
	view   view
	scroll int   // index of the first line of the table that is shown
	err    error // of the last request; nil: it was answered
}

// watch shows the director until a key ends it, or ctx ends.
func watch(ctx context.Context, socket string, every time.Duration, order int) error {
	tty, err := tcell.NewStdIoTty()
	if err != nil {
		return err
	}
	terminal, err := tcell.NewTerminfoScreenFromTty(tty)
	if err != nil {
		return fmt.Errorf("terminal %q: %w: set TERM, to xterm for instance, or use --once", os.Getenv("TERM"), err)
	}
	if err := terminal.Init(); err != nil {
		return fmt.Errorf("terminal %q: %w: use --once", os.Getenv("TERM"), err)
	}
	defer terminal.Fini()
	// SIGHUP comes when the terminal's connection is cut. Every end has to restore the terminal.
	ctx, stop := daemon.Signals(ctx, syscall.SIGHUP)
	defer stop()
	s := &screen{Screen: terminal, view: view{order: order}}

	events, quit := make(chan tcell.Event), make(chan struct{})
	defer close(quit)
	go terminal.ChannelEvents(events, quit)
	ctx, cancel := context.WithCancel(ctx)
	looks := make(chan look)
	looked := make(chan struct{})
	go func() {
		defer close(looked)
		lookOut(ctx, socket, every, looks)
	}()
	defer func() {
		cancel()
		<-looked
	}()
	for {
		s.draw()
		select {
		case <-ctx.Done():
			return nil
		case l := <-looks:
			if s.err = l.err; l.err == nil {
				s.view.take(l.at, &l.status)
			}
		case e, open := <-events:
			if !open || !s.react(e) {
				return nil
			}
		}
	}
}

// look is an answer of the director, or the error of the request.
type look struct {
	at     time.Time
	status api.DirectorStatus
	err    error
}

// lookOut requests the status once each period every, and sends the answers to looks.
func lookOut(ctx context.Context, socket string, every time.Duration, looks chan<- look) {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		var l look
		l.err = api.Get(ctx, socket, "/status", &l.status)
		l.at = time.Now()
		select {
		case <-ctx.Done():
			return
		case looks <- l:
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// react handles a key or a resize. It returns false if the key ends the view.
func (s *screen) react(e tcell.Event) bool {
	switch e := e.(type) {
	case *tcell.EventResize:
		s.Sync()
	case *tcell.EventKey:
		_, height := s.Size()
		page := max(1, height-headLines-2)
		switch e.Key() {
		case tcell.KeyEscape, tcell.KeyCtrlC:
			return false
		case tcell.KeyDown:
			s.scroll++
		case tcell.KeyUp:
			s.scroll--
		case tcell.KeyPgDn:
			s.scroll += page
		case tcell.KeyPgUp:
			s.scroll -= page
		case tcell.KeyHome:
			s.scroll = 0
		case tcell.KeyCtrlL:
			s.Sync()
		case tcell.KeyRune:
			switch e.Rune() {
			case 'q', 'Q':
				return false
			case 's':
				s.view.order = (s.view.order + 1) % len(orders)
			case 'S':
				s.view.order = (s.view.order + len(orders) - 1) % len(orders)
			case 'j':
				s.scroll++
			case 'k':
				s.scroll--
			}
		}
	}
	return true
}

var styles = map[style]tcell.Style{
	usual:  tcell.StyleDefault,
	strong: tcell.StyleDefault.Bold(true),
	faint:  tcell.StyleDefault.Dim(true),
	alarm:  tcell.StyleDefault.Foreground(tcell.ColorRed).Bold(true),
	title:  tcell.StyleDefault.Reverse(true),
}

// draw shows the view. Its head and titles stay, the table scrolls below them.
func (s *screen) draw() {
	width, height := s.Size()
	s.Clear()
	defer s.Show()
	if width < 1 || height < 1 {
		return
	}
	foot := line{cut(fmt.Sprintf("q quit   s sort: %s   ↑↓ PgUp PgDn scroll", orders[s.view.order]), width), faint}
	if s.err != nil {
		foot = line{cut(s.err.Error(), width), alarm}
	}
	s.put(height-1, foot, width)
	if s.view.is == nil {
		return
	}
	lines := s.view.lines(width)
	fixed := min(headLines+1, len(lines))
	body := lines[fixed:]
	s.scroll = max(0, min(s.scroll, len(body)-(height-1-fixed)))
	at := 0
	for _, l := range append(append([]line{}, lines[:fixed]...), body[s.scroll:]...) {
		if at == height-1 {
			break
		}
		s.put(at, l, width)
		at++
	}
}

func (s *screen) put(y int, l line, width int) {
	x := 0
	for _, r := range l.text {
		s.SetContent(x, y, r, nil, styles[l.style])
		x++
	}
	for ; l.style == title && x < width; x++ {
		s.SetContent(x, y, ' ', nil, styles[title])
	}
}
