package densenet;

import io.netty.buffer.ByteBuf;
import io.netty.buffer.ByteBufAllocator;
import io.netty.buffer.UnpooledByteBufAllocator;
import io.netty.handler.codec.http.FullHttpRequest;
import io.netty.handler.codec.http.HttpRequest;
import io.netty.handler.codec.http.multipart.Attribute;
import io.netty.handler.codec.http.multipart.DefaultHttpDataFactory;
import io.netty.handler.codec.http.multipart.FileUpload;
import io.netty.handler.codec.http.multipart.HttpDataFactory;
import io.netty.handler.codec.http.multipart.HttpPostRequestDecoder;
import io.netty.handler.codec.http.multipart.InterfaceHttpData;
import java.nio.charset.Charset;
import java.util.HashSet;
import java.util.Set;
import org.pytorch.serve.http.BadRequestException;

/** Netty's decoder of forms with a limit of fields, each once, 400 instead of 500 for a broken one, and no leak. */
public final class FormDecoder {
    /** Netty's own default since 4.1.108. A request of this project has at most five. */
    static final int MAX_FIELDS = 128;

    /** What the headers of a field may say of it: its name, its file's name, type and coding. */
    static final int DESCRIPTIONS = 4;

    /** What Netty makes for a field by itself is on the heap, since it doesn't release it. */
    private static final ByteBufAllocator ALLOCATOR = new UnpooledByteBufAllocator(false);

    /**
     * A copy of the body, whose slices the fields are. Netty releases neither them nor the body of a broken form. It is
     * outside the heap, since Netty 4.1.53 reads pictures wrongly from an array.
     */
    private final ByteBuf body;

    private final HttpPostRequestDecoder decoder;

    /** Decodes the whole form: TorchServe hands over requests that are complete. */
    public FormDecoder(HttpDataFactory factory, HttpRequest request) {
        FullHttpRequest whole = (FullHttpRequest) request;
        ByteBuf content = whole.content();
        body = ALLOCATOR.directBuffer(content.readableBytes()).writeBytes(content.duplicate());
        try {
            decoder = new HttpPostRequestDecoder(new LimitedFactory(), whole.replace(body));
        } catch (TooManyFields error) {
            release();
            throw new BadRequestException(
                    "received a form of more than " + MAX_FIELDS + " fields; send the picture as the body, or as one"
                            + " multipart field");
        } catch (RuntimeException error) {
            release();
            throw unreadable();
        }
        Set<String> names = new HashSet<>();
        for (InterfaceHttpData field : decoder.getBodyHttpDatas()) {
            if (!names.add(field.getName())) { // TorchServe keeps the last one, and says nothing
                destroy();
                throw new BadRequestException(
                        "received more than one field of the same name; send one picture in a request, or JSON with"
                                + " instances");
            }
        }
    }

    private void release() {
        body.release(body.refCnt());
    }

    private static BadRequestException unreadable() {
        return new BadRequestException(
                "received a form that can't be parsed; send the picture as the body with its content type (curl -T"
                        + " dog.jpg), or as multipart/form-data (curl -F file=@dog.jpg)");
    }

    /** See HttpPostRequestDecoder. */
    public static boolean isMultipart(HttpRequest request) {
        try {
            return HttpPostRequestDecoder.isMultipart(request);
        } catch (RuntimeException error) { // a boundary that is a lone quotation mark
            throw unreadable();
        }
    }

    /** See HttpPostRequestDecoder. */
    public boolean hasNext() {
        return decoder.hasNext();
    }

    /** See HttpPostRequestDecoder. */
    public InterfaceHttpData next() {
        return decoder.next();
    }

    /** See HttpPostRequestDecoder. */
    public void cleanFiles() {
        decoder.cleanFiles();
    }

    /** See HttpPostRequestDecoder. */
    public void destroy() {
        decoder.destroy();
        release();
    }

    private static final class TooManyFields extends IllegalStateException {
        private static final long serialVersionUID = 1L;
    }

    /** Counts the fields of its one request as they are made. */
    private static final class LimitedFactory extends DefaultHttpDataFactory {
        private int fields;
        private int descriptions;

        LimitedFactory() {
            super(false); // in memory, never in a file: the whole body is there already
        }

        private void count() {
            if (++fields > MAX_FIELDS) {
                throw new TooManyFields();
            }
        }

        @Override
        public Attribute createAttribute(HttpRequest request, String name) {
            count();
            return super.createAttribute(request, name);
        }

        @Override
        public Attribute createAttribute(HttpRequest request, String name, long size) {
            count();
            return super.createAttribute(request, name, size);
        }

        @Override
        public Attribute createAttribute(HttpRequest request, String name, String value) {
            if (++descriptions > MAX_FIELDS * DESCRIPTIONS) {
                throw new TooManyFields();
            }
            return super.createAttribute(request, name, value);
        }

        @Override
        public FileUpload createFileUpload(
                HttpRequest request,
                String name,
                String file,
                String type,
                String encoding,
                Charset charset,
                long size) {
            count();
            return super.createFileUpload(request, name, file, type, encoding, charset, size);
        }
    }
}
