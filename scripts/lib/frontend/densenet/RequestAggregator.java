package densenet;

import io.netty.buffer.ByteBuf;
import io.netty.channel.ChannelHandlerContext;
import io.netty.channel.ChannelOption;
import io.netty.handler.codec.http.FullHttpMessage;
import io.netty.handler.codec.http.HttpHeaderNames;
import io.netty.handler.codec.http.HttpHeaderValues;
import io.netty.handler.codec.http.HttpHeaders;
import io.netty.handler.codec.http.HttpMessage;
import io.netty.handler.codec.http.HttpObjectAggregator;
import io.netty.handler.codec.http.HttpRequest;
import io.netty.handler.codec.http.HttpUtil;
import io.netty.handler.timeout.IdleStateHandler;
import java.util.regex.Pattern;

/** Netty's aggregator of requests, with a {@link Gate} before it, and an end for idle connections. */
public final class RequestAggregator extends HttpObjectAggregator {
    /** Seconds without a byte from or to a client, while no answer is due; longer than the front door keeps one. */
    static final int IDLE_SECONDS = 30;

    /** Tells the handler what stands behind the question mark. */
    private static final String QUERY = "X-Densenet-Query";

    private static final Pattern QUERIED = Pattern.compile("/(predictions|explanations|v1/models)/[^?]+\\?.+");

    static {
        Waiting.start();
    }

    /** As HttpObjectAggregator's. */
    public RequestAggregator(int maxContentLength) {
        super(maxContentLength);
    }

    @Override
    public void handlerAdded(ChannelHandlerContext context) throws Exception {
        super.handlerAdded(context);
        // TorchServe's 0 throws away what wasn't sent yet when a connection is closed: after an error, its answer
        context.channel().config().setOption(ChannelOption.SO_LINGER, -1);
        context.pipeline()
                .addBefore(context.name(), "idle", new IdleStateHandler(0, 0, IDLE_SECONDS))
                .addBefore(context.name(), "gate", new Gate());
    }

    /**
     * What TorchServe would drop or misread goes to the handler as it is: parameters behind a path of predictions, and a
     * body that curl calls a form because it was told nothing else (curl -d, --data-binary).
     */
    @Override
    protected FullHttpMessage beginAggregation(HttpMessage start, ByteBuf content) throws Exception {
        HttpHeaders headers = start.headers();
        headers.remove(QUERY);
        String uri = start instanceof HttpRequest ? ((HttpRequest) start).uri() : "";
        if (QUERIED.matcher(uri).matches()) {
            headers.set(QUERY, uri.substring(uri.indexOf('?') + 1));
        }
        if (HttpHeaderValues.APPLICATION_X_WWW_FORM_URLENCODED.contentEqualsIgnoreCase(HttpUtil.getMimeType(start))) {
            headers.set(HttpHeaderNames.CONTENT_TYPE, HttpHeaderValues.APPLICATION_OCTET_STREAM);
        }
        return super.beginAggregation(start, content);
    }

    /** Gives up the request that is arriving. */
    void forget(ChannelHandlerContext context) {
        try {
            handlerRemoved(context); // Netty's only way to it
        } catch (Exception error) {
            throw new IllegalStateException(error);
        }
    }
}
