package densenet;

import io.netty.handler.codec.http.QueryStringDecoder;

/** Netty's decoder of paths; one without a slash (OPTIONS *) gets one, where TorchServe would answer with 500. */
public final class PathDecoder extends QueryStringDecoder {
    /** As QueryStringDecoder's. */
    public PathDecoder(String uri) {
        super(uri.startsWith("/") ? uri : "/" + uri);
    }
}
