package api

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"iter"
	"net/http"
	"net/url"
)

// JSON answers with the value that fn returns for the request's query, or with fn's error and status 422.
func JSON(fn func(url.Values) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v, err := fn(r.URL.Query())
		if err != nil {
			refuse(w, err)
			return
		}
		answer(w, v)
	})
}

// Alive answers once status has returned. status makes the whole status: if it hangs, there is no answer.
func Alive(status func()) http.Handler {
	return JSON(func(url.Values) (any, error) {
		status()
		return struct{}{}, nil
	})
}

// lineBuffer is the number of bytes of an answer in lines that either side holds. No line is longer.
const lineBuffer = 64 << 10

// JSONLines answers with a line of JSON for each value that rows yields. Neither side holds all of them. An error of
// rows refuses the query, with status 422. The iteration ends early when the client leaves or stops reading.
func JSONLines(rows func(url.Values) (iter.Seq[any], error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seq, err := rows(r.URL.Query())
		if err != nil {
			refuse(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/jsonl")
		// The client learns before the first row that its query is accepted.
		if err := http.NewResponseController(w).Flush(); err != nil {
			return
		}
		out := bufio.NewWriterSize(w, lineBuffer)
		enc := json.NewEncoder(out)
		for row := range seq {
			if r.Context().Err() != nil || enc.Encode(row) != nil {
				panic(http.ErrAbortHandler) // a normal return would make the answer look complete
			}
		}
		if out.Flush() != nil {
			panic(http.ErrAbortHandler)
		}
	})
}

// summaryHeader is the trailer that carries the summary of a Stream.
const summaryHeader = "Vstun-Summary"

// Stream answers with bytes that are written as they come. open returns the function that writes them, or an error that
// refuses the query with status 422. The function writes until ctx ends or the client leaves, and calls flush to send
// all bytes so far to the client. Its result is the summary, which follows the bytes as JSON; see Summary.
func Stream(
	contentType string,
	open func(url.Values) (func(ctx context.Context, w io.Writer, flush func() error) (any, error), error),
) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		write, err := open(r.URL.Query())
		if err != nil {
			refuse(w, err)
			return
		}
		w.Header().Set("Content-Type", contentType)
		w.Header().Set("Trailer", summaryHeader)
		summary, err := write(r.Context(), w, http.NewResponseController(w).Flush)
		if err != nil {
			panic(http.ErrAbortHandler) // a normal return would make the answer look complete
		}
		if text, err := json.Marshal(summary); err == nil {
			w.Header().Set(summaryHeader, string(text))
		}
	})
}
