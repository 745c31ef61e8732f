package densenet;

/** The error of a request with a compressed body: its name is the type in the answer. */
final class UnsupportedContentEncoding extends RuntimeException {
    private static final long serialVersionUID = 1L;

    UnsupportedContentEncoding() {
        super("received a compressed body (Content-Encoding); send it as it is, without that header");
    }
}
