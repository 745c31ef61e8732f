package densenet;

import io.netty.buffer.ByteBuf;
import io.netty.buffer.Unpooled;
import io.netty.channel.ChannelDuplexHandler;
import io.netty.channel.ChannelFutureListener;
import io.netty.channel.ChannelHandlerContext;
import io.netty.channel.ChannelPromise;
import io.netty.handler.codec.http.DefaultFullHttpResponse;
import io.netty.handler.codec.http.FullHttpResponse;
import io.netty.handler.codec.http.HttpContent;
import io.netty.handler.codec.http.HttpHeaderNames;
import io.netty.handler.codec.http.HttpHeaderValues;
import io.netty.handler.codec.http.HttpMethod;
import io.netty.handler.codec.http.HttpRequest;
import io.netty.handler.codec.http.HttpResponse;
import io.netty.handler.codec.http.HttpResponseStatus;
import io.netty.handler.codec.http.HttpStatusClass;
import io.netty.handler.codec.http.HttpUtil;
import io.netty.handler.codec.http.LastHttpContent;
import io.netty.handler.timeout.IdleStateEvent;
import io.netty.util.ReferenceCountUtil;
import java.nio.charset.StandardCharsets;
import java.util.ArrayDeque;
import java.util.List;
import java.util.Queue;
import java.util.regex.Pattern;
import org.pytorch.serve.archive.model.ModelVersionNotFoundException;
import org.pytorch.serve.metrics.IMetric;
import org.pytorch.serve.metrics.MetricCache;
import org.pytorch.serve.util.ConfigManager;
import org.pytorch.serve.util.NettyUtils;
import org.pytorch.serve.wlm.Model;
import org.pytorch.serve.wlm.ModelManager;

/**
 * One connection. Its requests are answered in their order. One for which there is no place, in the queue or in memory, is
 * refused without keeping its body, as is a compressed one; 503 says when to try again. A connection is closed where its client asks for that, or
 * where nothing happens on it.
 */
final class Gate extends ChannelDuplexHandler {
    /** Seconds after which a refused request may be sent again. */
    static final int RETRY_SECONDS = 1;

    /** Tells the front door that this 503 is of a server that has too much to do. */
    static final String BUSY = "X-Densenet-Busy";

    /** Tells the front door that this 503 is of a request with which a worker died: another host's would, too. */
    static final String WORKER_DIED = "X-Densenet-Worker-Died";

    /** Of the handler's 503 for a request that takes too long. */
    private static final String SLOW = "X-Densenet-Slow";

    private static final Pattern SEPARATOR = Pattern.compile("[/?]");

    /** Bytes that are counted at once of a body whose length isn't told. */
    private static final int STEP = 1 << 16;

    /** A shorter piece of a body is copied: else it keeps the whole 4 KB in which it came. */
    private static final int SHORT = 1 << 11;

    /** What came of the requests after this one: no more than one read holds, as nothing is read until its answer. */
    private final Queue<Object> later = new ArrayDeque<>();

    /** The last request that began. */
    private HttpRequest request;

    /** Whether its answer is due. */
    private boolean due;

    /** Whether it is here whole. */
    private boolean whole;

    /** Why it is refused, while its body is being thrown away; null if it isn't. */
    private RuntimeException refusal;

    /** Bytes of its body that came, and that are counted. */
    private long received;

    private long counted;

    /** Whether the answer to a refused request leaves its connection open, where TorchServe closes it after an error. */
    private boolean keptOpen;

    /** Whether the connection ends with the answer that is being written. */
    private boolean ends;

    @Override
    public void channelRead(ChannelHandlerContext context, Object message) {
        if (ends && !due) {
            ReferenceCountUtil.release(message);
        } else if (!later.isEmpty() || due && whole) {
            context.channel().config().setAutoRead(false);
            later.add(message);
        } else {
            handle(context, message);
        }
    }

    private void handle(ChannelHandlerContext context, Object message) {
        if (message instanceof HttpRequest) {
            begin((HttpRequest) message);
        }
        whole = message instanceof LastHttpContent;
        if (due && refusal == null && message instanceof HttpContent && !counts((HttpContent) message)) {
            refusal = new ServiceUnavailableException(ServiceUnavailableException.BYTES);
            release();
            context.pipeline().get(RequestAggregator.class).forget(context);
        }
        if (refusal == null) {
            context.fireChannelRead(message instanceof HttpContent ? compact((HttpContent) message) : message);
            if (whole) {
                release(); // what waits in a queue counts there
            }
            return;
        }
        // A client that isn't asked for its body (100) sends none; any other would miss an answer that came earlier.
        boolean over = whole || message instanceof HttpRequest && HttpUtil.is100ContinueExpected(request);
        ReferenceCountUtil.release(message);
        if (over) {
            refuse(context);
        }
    }

    private void begin(HttpRequest next) {
        request = next;
        due = true;
        received = 0;
        long length = length(next);
        String coding = next.headers().get(HttpHeaderNames.CONTENT_ENCODING);
        if (coding != null && !HttpHeaderValues.IDENTITY.contentEqualsIgnoreCase(coding.trim())) {
            refusal = new UnsupportedContentEncoding();
        } else if (isFull(next)) {
            refusal = new ServiceUnavailableException(ServiceUnavailableException.REQUESTS);
        } else if (length > 0 && length <= ConfigManager.getInstance().getMaxRequestSize() && !take(length)) {
            refusal = new ServiceUnavailableException(ServiceUnavailableException.BYTES);
        }
    }

    /** The length of its body that a request tells; 0 if it doesn't, or wrongly. */
    private static long length(HttpRequest request) {
        try {
            return HttpUtil.getContentLength(request, 0L);
        } catch (NumberFormatException error) {
            return 0; // Netty says so
        }
    }

    private boolean take(long bytes) {
        boolean taken = Bodies.take(bytes);
        counted += taken ? bytes : 0;
        return taken;
    }

    /** Whether there is a place for one more piece of the body. */
    private boolean counts(HttpContent piece) {
        received += piece.content().readableBytes();
        while (counted < received) {
            if (!take(STEP)) {
                return false;
            }
        }
        return true;
    }

    private static HttpContent compact(HttpContent piece) {
        ByteBuf content = piece.content();
        if (piece instanceof LastHttpContent || content.readableBytes() >= SHORT) {
            return piece;
        }
        HttpContent copy = piece.replace(Unpooled.copiedBuffer(content));
        piece.release();
        return copy;
    }

    private void release() {
        Bodies.give(counted);
        counted = 0;
    }

    /** Whether a request asks for a prediction of a model whose queue has no place. */
    private static boolean isFull(HttpRequest request) {
        String[] route = route(request);
        if (route == null || request.method().equals(HttpMethod.OPTIONS)) {
            return false;
        }
        try {
            Model model = ModelManager.getInstance().getModel(route[0], route[1]);
            return model != null && model.getJobQueueRemainingCapacity() == 0;
        } catch (ModelVersionNotFoundException error) {
            return false; // TorchServe says so
        }
    }

    /** Name and version (or null) of the model in /predictions/NAME/VERSION; null if it is another path. */
    private static String[] route(HttpRequest request) {
        String[] parts = SEPARATOR.split(request.uri(), 5);
        if (parts.length < 3 || !parts[1].equals("predictions")) {
            return null;
        }
        return new String[] {parts[2], parts.length > 3 && !parts[3].isEmpty() ? parts[3] : null};
    }

    /** Answers as TorchServe does, with its metrics and a line in its access log. */
    private void refuse(ChannelHandlerContext context) {
        RuntimeException error = refusal;
        refusal = null;
        IMetric asked = MetricCache.getInstance().getMetricFrontend("ts_inference_requests_total");
        String[] route = route(request);
        if (asked != null && route != null) {
            String version = route[1] == null ? "default" : route[1];
            asked.addOrUpdate(List.of(route[0], version, ConfigManager.getInstance().getHostName()), 1);
        }
        keptOpen = whole && HttpUtil.isKeepAlive(request);
        NettyUtils.requestReceived(context.channel(), request);
        NettyUtils.sendError(
                context,
                error instanceof ServiceUnavailableException
                        ? HttpResponseStatus.SERVICE_UNAVAILABLE
                        : HttpResponseStatus.UNSUPPORTED_MEDIA_TYPE,
                error);
    }

    @Override
    public void write(ChannelHandlerContext context, Object message, ChannelPromise promise) throws Exception {
        boolean last = message instanceof LastHttpContent;
        if (message instanceof HttpResponse) {
            message = explained((HttpResponse) message);
            HttpResponse response = (HttpResponse) message;
            last &= response.status().codeClass() != HttpStatusClass.INFORMATIONAL;
            complete(response);
        }
        if (message instanceof HttpContent) {
            int bytes = ((HttpContent) message).content().readableBytes();
            Bodies.add(bytes);
            promise.addListener(written -> Bodies.give(bytes));
        }
        if (last) {
            due = false;
            release();
            if (ends) {
                promise.addListener(ChannelFutureListener.CLOSE);
            } else if (!later.isEmpty()) {
                context.executor().execute(() -> goOn(context));
            }
        }
        super.write(context, message, promise);
    }

    /** The answer; that of Netty to a body that is too long, which says nothing, in the form of all errors. */
    private static HttpResponse explained(HttpResponse response) {
        if (!response.status().equals(HttpResponseStatus.REQUEST_ENTITY_TOO_LARGE) || !text(response).isEmpty()) {
            return response;
        }
        String most = Bodies.LARGEST_BODY + " bytes";
        ByteBuf text =
                Unpooled.copiedBuffer(
                        "{\n  \"code\": 413,\n  \"type\": \"RequestTooLarge\",\n  \"message\": \"received more than "
                                + most
                                + "; accepted are bodies of at most "
                                + most
                                + "\"\n}\n",
                        StandardCharsets.US_ASCII);
        HttpResponse whole = new DefaultFullHttpResponse(response.protocolVersion(), response.status(), text);
        whole.headers()
                .set(response.headers())
                .set(HttpHeaderNames.CONTENT_TYPE, HttpHeaderValues.APPLICATION_JSON)
                .set(HttpHeaderNames.CONTENT_LENGTH, text.readableBytes());
        return whole;
    }

    /** The headers that TorchServe leaves out. */
    private void complete(HttpResponse response) {
        if (response.status().equals(HttpResponseStatus.SERVICE_UNAVAILABLE)) {
            response.headers().set(HttpHeaderNames.RETRY_AFTER, RETRY_SECONDS);
            if (keptOpen) {
                response.headers().set(HttpHeaderNames.CONNECTION, HttpHeaderValues.KEEP_ALIVE);
            }
            String text = text(response);
            if (ServiceUnavailableException.saysBusy(text)) {
                response.headers().set(BUSY, 1);
            } else if (text.contains(WorkerDied.class.getSimpleName())) {
                response.headers().set(WORKER_DIED, 1);
            }
            if (isForAnotherHost(response)) {
                response.setStatus(HttpResponseStatus.FORBIDDEN);
            }
        }
        if (request != null && !HttpUtil.isKeepAlive(request)) {
            response.headers().set(HttpHeaderNames.CONNECTION, HttpHeaderValues.CLOSE);
        }
        ends = response.headers().contains(HttpHeaderNames.CONNECTION, HttpHeaderValues.CLOSE, true);
    }

    /**
     * Whether a 503 is a refusal that the front door asks another host about: not of what a worker died of, or is slow.
     * About 403 nginx asks another host, and doesn't count it as a failure of this one. TorchServe's own are 400: Answers.
     */
    private boolean isForAnotherHost(HttpResponse response) {
        return request != null
                && request.headers().contains(Waiting.PATIENCE)
                && !response.headers().contains(WORKER_DIED)
                && !response.headers().contains(SLOW);
    }

    private static String text(HttpResponse response) {
        return response instanceof FullHttpResponse
                ? ((FullHttpResponse) response).content().toString(StandardCharsets.UTF_8)
                : "";
    }

    /** Takes up the request after the one that was answered. */
    private void goOn(ChannelHandlerContext context) {
        while (!later.isEmpty() && !(due && whole)) {
            handle(context, later.remove());
        }
        context.channel().config().setAutoRead(later.isEmpty());
    }

    @Override
    public void close(ChannelHandlerContext context, ChannelPromise promise) throws Exception {
        if (keptOpen) { // what TorchServe asks for when the answer is written
            keptOpen = false;
            promise.setSuccess();
        } else {
            super.close(context, promise);
        }
    }

    @Override
    public void channelInactive(ChannelHandlerContext context) throws Exception {
        release();
        later.forEach(ReferenceCountUtil::release);
        later.clear();
        super.channelInactive(context);
    }

    @Override
    public void userEventTriggered(ChannelHandlerContext context, Object event) throws Exception {
        if (event instanceof IdleStateEvent && (!due || !whole)) {
            context.close();
        }
        super.userEventTriggered(context, event);
    }
}
