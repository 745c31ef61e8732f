package densenet;

import io.netty.channel.ChannelDuplexHandler;
import io.netty.channel.ChannelHandlerContext;
import io.netty.channel.ChannelPromise;
import io.netty.handler.codec.http.FullHttpResponse;
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
import java.util.List;
import java.util.regex.Pattern;
import org.pytorch.serve.archive.model.ModelVersionNotFoundException;
import org.pytorch.serve.metrics.IMetric;
import org.pytorch.serve.metrics.MetricCache;
import org.pytorch.serve.util.ConfigManager;
import org.pytorch.serve.util.NettyUtils;
import org.pytorch.serve.wlm.Model;
import org.pytorch.serve.wlm.ModelManager;

/**
 * One connection. A prediction for which the queue has no place is refused without keeping its picture, 503 says when
 * to try again, and a connection on which nothing happens is closed.
 */
final class Gate extends ChannelDuplexHandler {
    /** Seconds after which a refused request may be sent again. */
    static final int RETRY_SECONDS = 1;

    /** Tells the front door that this 503 is of a full queue. */
    static final String BUSY = "X-Densenet-Busy";

    private static final Pattern SEPARATOR = Pattern.compile("[/?]");

    /** The refused request whose body is being thrown away; null if none is. */
    private HttpRequest refused;

    /** Name and version (or null) of the model that it asks for. */
    private String[] route;

    /** Whether the answer to a refused request leaves its connection open, where TorchServe closes it after an error. */
    private boolean keptOpen;

    /** Requests that have begun and aren't answered yet. */
    private int due;

    /** Whether the last of them is here whole. */
    private boolean whole;

    @Override
    public void channelRead(ChannelHandlerContext context, Object message) {
        if (message instanceof HttpRequest) {
            HttpRequest request = (HttpRequest) message;
            if (due == 0) {
                route = route(request);
                refused = isFull(request, route) ? request : null;
            }
            due++;
        }
        whole = message instanceof LastHttpContent;
        if (refused == null) {
            context.fireChannelRead(message);
            return;
        }
        // A client that isn't asked for its body (100) sends none; any other would miss an answer that came earlier.
        boolean over = whole || message instanceof HttpRequest && HttpUtil.is100ContinueExpected(refused);
        ReferenceCountUtil.release(message);
        if (over) {
            refuse(context);
        }
    }

    /** Whether a request asks for a prediction of a model whose queue has no place. */
    private static boolean isFull(HttpRequest request, String[] route) {
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
        HttpRequest request = refused;
        refused = null;
        IMetric asked = MetricCache.getInstance().getMetricFrontend("ts_inference_requests_total");
        if (asked != null) {
            String version = route[1] == null ? "default" : route[1];
            asked.addOrUpdate(List.of(route[0], version, ConfigManager.getInstance().getHostName()), 1);
        }
        keptOpen = whole && HttpUtil.isKeepAlive(request);
        NettyUtils.requestReceived(context.channel(), request);
        NettyUtils.sendError(context, HttpResponseStatus.SERVICE_UNAVAILABLE, new ServiceUnavailableException(""));
    }

    @Override
    public void write(ChannelHandlerContext context, Object message, ChannelPromise promise) throws Exception {
        boolean last = message instanceof LastHttpContent;
        if (message instanceof HttpResponse) {
            HttpResponse response = (HttpResponse) message;
            last &= response.status().codeClass() != HttpStatusClass.INFORMATIONAL;
            if (response.status().equals(HttpResponseStatus.SERVICE_UNAVAILABLE)) {
                response.headers().set(HttpHeaderNames.RETRY_AFTER, RETRY_SECONDS);
                if (keptOpen) {
                    response.headers().set(HttpHeaderNames.CONNECTION, HttpHeaderValues.KEEP_ALIVE);
                }
                if (saysBusy(response)) {
                    response.headers().set(BUSY, 1);
                }
            }
        }
        due -= last ? 1 : 0;
        super.write(context, message, promise);
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

    private static boolean saysBusy(HttpResponse response) {
        return response instanceof FullHttpResponse
                && ((FullHttpResponse) response)
                        .content()
                        .toString(StandardCharsets.UTF_8)
                        .contains(ServiceUnavailableException.BUSY);
    }

    @Override
    public void userEventTriggered(ChannelHandlerContext context, Object event) throws Exception {
        if (event instanceof IdleStateEvent && (due == 0 || !whole)) {
            context.close();
        }
        super.userEventTriggered(context, event);
    }
}
