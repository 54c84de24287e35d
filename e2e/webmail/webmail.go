// Package webmail is a web server and a mail server for tests. By HTTP it has one page, in light green; by IMAP the mail of user
// "username" with the password "password": one message.
package webmail

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/emersion/go-imap/backend/memory"
	"github.com/emersion/go-imap/server"
)

const page = `<!DOCTYPE html><html><head><title>A page</title></head>
<body style="background: #d0ffd0"><h1>A page of the notebook's</h1></body></html>`

// Serve serves on both until one of them is closed. It prints what is asked for, line by line.
func Serve(web, imap net.Listener, out io.Writer) error {
	mail := server.New(memory.New())
	mail.AllowInsecureAuth = true
	mail.Debug = out
	failed := make(chan error, 2)
	go func() { failed <- mail.Serve(imap) }()
	go func() {
		s := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(out, "%s %s by %s\n", r.Method, r.URL.Path, r.UserAgent())
			fmt.Fprint(w, page)
		})}
		failed <- s.Serve(web)
	}()
	return <-failed
}
