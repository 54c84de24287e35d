// Command webmail is a web server and a mail server for tests: webmail ADDRESS. By HTTP, port 80, it has one page, in light green; by
// IMAP, port 143, the mail of user "username" with the password "password": one message. It prints what is asked for, line by line.
package main

import (
	"fmt"
	"log"
	"net"
	"net/http"
	"os"

	"github.com/emersion/go-imap/backend/memory"
	"github.com/emersion/go-imap/server"
)

const page = `<!DOCTYPE html><html><head><title>A page</title></head>
<body style="background: #d0ffd0"><h1>A page of the notebook's</h1></body></html>`

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: webmail ADDRESS")
	}
	web, err := net.Listen("tcp", net.JoinHostPort(os.Args[1], "80"))
	if err != nil {
		log.Fatal(err)
	}
	imap, err := net.Listen("tcp", net.JoinHostPort(os.Args[1], "143"))
	if err != nil {
		log.Fatal(err)
	}
	mail := server.New(memory.New())
	mail.AllowInsecureAuth = true
	mail.Debug = os.Stdout
	go func() { log.Fatal(mail.Serve(imap)) }()
	fmt.Println("ready")
	//nolint:gosec // the only client is a guest of the test
	log.Fatal(http.Serve(web, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Printf("%s %s by %s\n", r.Method, r.URL.Path, r.UserAgent())
		fmt.Fprint(w, page)
	})))
}
