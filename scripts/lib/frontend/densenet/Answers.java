package densenet;

import io.netty.channel.ChannelHandlerContext;
import io.netty.handler.codec.http.HttpResponse;
import io.netty.handler.codec.http.HttpResponseStatus;
import org.pytorch.serve.util.NettyUtils;

/** How a request is answered that went to a worker: TorchServe's way, but for what is worth another try. */
public final class Answers {
    private Answers() {}

    /** See NettyUtils. TorchServe says 500, 413 or 507 where the worker died. */
    public static void sendError(ChannelHandlerContext context, HttpResponseStatus status, Throwable error) {
        if ("Worker died.".equals(error.getMessage())) {
            NettyUtils.sendError(context, HttpResponseStatus.SERVICE_UNAVAILABLE, new WorkerDied());
        } else if (status.equals(HttpResponseStatus.SERVICE_UNAVAILABLE)) {
            NettyUtils.sendError(context, status, new ServiceUnavailableException(error.getMessage()));
        } else {
            NettyUtils.sendError(context, status, error);
        }
    }

    /** See NettyUtils. */
    public static void sendHttpResponse(ChannelHandlerContext context, HttpResponse response, boolean keepAlive) {
        NettyUtils.sendHttpResponse(context, response, keepAlive);
    }
}
