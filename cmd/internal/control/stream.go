package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
)

// streamBuffer is the part of a stream that either side holds. No line is longer.
const streamBuffer = 64 << 10

// Stream serves GET path with a line of JSON for each value that rows yields, one after the other: neither side ever
// holds all of them. An error of rows means that the query is wrong. When the client goes, or stays but doesn't read,
// rows is stopped.
func (s *Server) Stream(path string, rows func(url.Values) (iter.Seq[any], error)) {
	s.mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
		seq, err := rows(r.URL.Query())
		if err != nil {
			http.Error(w, err.Error(), http.StatusUnprocessableEntity)
			return
		}
		w.Header().Set("Content-Type", "application/jsonl")
		// the client learns that its query is fine before the first row is found
		if err := http.NewResponseController(w).Flush(); err != nil {
			return
		}
		out := bufio.NewWriterSize(w, streamBuffer)
		enc := json.NewEncoder(out)
		for row := range seq {
			if r.Context().Err() != nil || enc.Encode(row) != nil {
				panic(http.ErrAbortHandler) // else the answer would look whole, should anybody still read it
			}
		}
		if out.Flush() != nil {
			panic(http.ErrAbortHandler)
		}
	})
}

// eachLine asks for path and calls fn for every line of the answer. It ends with fn's first error.
func eachLine(ctx context.Context, socket, path string, fn func(line []byte) error) error {
	resp, err := do(ctx, http.MethodGet, socket, path, 0)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewReaderSize(resp.Body, streamBuffer)
	for {
		line, err := lines.ReadSlice('\n')
		switch {
		case err == nil:
			if err := fn(bytes.TrimSuffix(line, []byte("\n"))); err != nil {
				return err
			}
		case errors.Is(err, io.EOF) && len(line) == 0:
			return nil
		default:
			return fmt.Errorf("%s: %s: the answer is cut off: %w", socket, path, err)
		}
	}
}
